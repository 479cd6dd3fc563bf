"""Whether a policy is fast enough to keep an arm moving, in a sentence."""

from agent.inference.engine import Traits


def verdict(traits: Traits, delay_s: float | None) -> str:
    """`delay_s`: from an observation to its chunk. Empty while there is no measurement.

    One prediction after the other, each taking L and covering H, starves max(0, 1 - (H / 2) / L) of the time: half a
    chunk has run when the next one comes, and the other half must last until the one after it. Slower than L = H the
    policy process observes only when all actions have run, which starves L / (L + H).
    """
    if not delay_s:
        return ""
    rate_hz = 1e9 / traits.period_ns
    covers_s = traits.chunk_size / rate_hz
    starved = max(0.0, 1 - covers_s / 2 / delay_s) if delay_s <= covers_s else delay_s / (delay_s + covers_s)
    cameras = f"{len(traits.cameras)} camera{'' if len(traits.cameras) == 1 else 's'}"
    outlook = f"starved {starved:.0%} of the time; slower than the arm needs" if starved else "no starvation expected"
    return f"{cameras}, {traits.chunk_size} actions at {rate_hz:g} Hz: {delay_s:.2f} s a chunk, {outlook}"
