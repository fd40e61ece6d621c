"""A device that announces its answer and never sends it; otherwise it works as any other.

    python mute.py HOST:PORT KEY_FOLDER ROUND

It answers what it is asked until ROUND, whose answer it begins and does not end.
"""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from airtune.deploy.agent.attend import Attending
from airtune.deploy.agent.device import Device, DeviceSettings
from airtune.deploy.caller import Proof
from airtune.wire.channel import RUN_KEY, SERVICE, TOKEN_KEY, Way
from airtune.wire.message import parts_of
from airtune.wire.tasks import fetch_task, send_answer


class Mute:
    """Takes tickets in place of a worker."""

    def __init__(self, server, proof, round):
        self._way, self._round = Way(server, proof.credentials()), round
        self._device = Device(DeviceSettings(data="recipe", compute="cpu"))

    def take(self, ticket, failed):
        threading.Thread(target=self._do, args=(ticket,), daemon=True).start()

    def prepare(self):
        pass

    def _do(self, ticket):
        way = replace(self._way, metadata=((RUN_KEY, ticket.run),))
        message = fetch_task(way, ticket)
        reply, said = self._device.handle(message, way), json.loads(message.header)
        if said["kind"] == "train" and said["round"] == self._round:
            self._announce(way, ticket, reply)
        else:
            send_answer(way, ticket, reply)

    def _announce(self, way, ticket, reply):
        def begun():
            yield next(parts_of(reply))
            time.sleep(3600)

        with way.open() as channel:
            print("announced", flush=True)
            channel.stream_unary(f"/{SERVICE}/Answer")(
                begun(), metadata=(*way.metadata, (TOKEN_KEY, ticket.token))
            )


def main():
    server, folder, round = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    proof = Proof(folder / "ca.crt", folder / "device.key", folder / "device.crt")
    while True:
        place = Mute(server, proof, round)
        Attending(server, proof, name="", place=place, hear=lambda said: None).attend(
            on_welcome=lambda: None
        )
        time.sleep(1)


if __name__ == "__main__":
    main()
