"""An adapter on disk, whole or not there: renamed into place when its bytes have reached the disk.

adapter.json                 what it is (`Manifest`), and the SHA-256 of the other files
adapter.sha256               the SHA-256 of adapter.json, as sha256sum writes it
adapter_model.safetensors    fp32, under peft's names; with method `expert`, under the policy's own
adapter_config.json          peft's own, for LoRA: `PeftModel.from_pretrained(policy, FOLDER)` opens it

The server keeps one for each round (OUTPUT/RUN/rounds/000001/, beside round.json with who took part, what it cost and
how good it is). A station keeps that of a finished run in brief.candidates/RUN/. `open_adapter(folder)` verifies it;
`policy_from(adapter, base, ...)` makes a bundle of base and adapter that runs like any other policy. Reading one needs
neither torch nor lerobot.
"""
