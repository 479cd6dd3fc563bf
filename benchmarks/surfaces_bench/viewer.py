"""What an open page asks of a station, without a browser: the stream, a picture after the other, signs of life.

    python -m benchmarks.surfaces_bench.viewer URL BROKER_PORT CAMERA...

Beside it stands somebody who reads the station's telemetry. Prints `ready` when pictures and telemetry come, and what
it saw when its input ends. A phone beside the arm does its drawing itself; what it costs the station is this.
"""

import asyncio
import json
import sys
import time
from collections import Counter

import aiomqtt
import httpx

RENEW_S = 0.1


class Viewer:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.counts: Counter[str] = Counter()
        self.ages_ms: list[float] = []
        self.renewals_ms: list[float] = []

    async def stream(self) -> None:
        async with self._http.stream("GET", "/api/v1/live", timeout=None) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    self.counts[line.removeprefix("event: ")] += 1

    async def pictures(self, camera: str) -> None:
        after = "0"
        while True:
            answer = await self._http.get(f"/api/v1/cameras/{camera}/preview.jpg", params={"after": after})
            if answer.status_code == 200:
                after = answer.headers["X-Captured-Ns"]
                self.ages_ms.append(float(answer.headers["X-Age-Ms"]))
                self.counts[f"pictures of {camera}"] += 1

    async def renew(self) -> None:
        taken = await self._http.post("/api/v1/lease")
        headers = {"X-Lease": taken.json()["token"]}
        while True:
            began_s = time.monotonic()
            answer = await self._http.post("/api/v1/lease/renew", headers=headers)
            self.renewals_ms.append((time.monotonic() - began_s) * 1000)
            self.counts["renewals" if answer.is_success else "renewals refused"] += 1
            await asyncio.sleep(max(0.0, RENEW_S - (time.monotonic() - began_s)))

    async def telemetry(self, port: int) -> None:
        async with aiomqtt.Client("127.0.0.1", port) as broker:
            await broker.subscribe("so/v1/+/telemetry")
            async for _ in broker.messages:
                self.counts["telemetry"] += 1


async def watch(url: str, broker_port: int, cameras: list[str]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        viewer = Viewer(http)
        pictures = [viewer.pictures(camera) for camera in cameras]
        work = [viewer.stream(), viewer.renew(), viewer.telemetry(broker_port), *pictures]
        tasks = [asyncio.create_task(each) for each in work]
        awaited = ["telemetry", *(f"pictures of {camera}" for camera in cameras)]
        while not all(viewer.counts[each] for each in awaited):
            ended, _ = await asyncio.wait(tasks, timeout=0.05)
            for task in ended:
                await task  # raises: they go on for ever unless they fail
        viewer.counts.clear()
        viewer.ages_ms.clear()
        viewer.renewals_ms.clear()
        began_s = time.monotonic()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)
        took_s = time.monotonic() - began_s
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ages, renewals = sorted(viewer.ages_ms), sorted(viewer.renewals_ms)
    seen = {
        "a_second": {name: round(count / took_s, 2) for name, count in viewer.counts.items()},
        "age_ms_p50": ages[len(ages) // 2],
        "renewal_ms_p50": renewals[len(renewals) // 2],
        "renewal_ms_max": renewals[-1],
    }
    print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
