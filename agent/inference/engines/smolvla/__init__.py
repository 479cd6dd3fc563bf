"""SmolVLA by a shorter way: the same numbers as lerobot's own code with less work, for one observation at a time.

weights.py   what is taken from lerobot's modules, joined where one product can do for several
vision.py    a picture to tokens
prefix.py    pictures, task and joints to what the action expert remembers of them
denoise.py   noise to actions
"""
