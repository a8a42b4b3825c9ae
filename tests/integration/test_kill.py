"""``kill -9`` at random moments: all mail is delivered, and each repeat was logged as ambiguous."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

import pytest

from tests.support.children import Place
from tests.support.queues import files, make_envelope, until
from tests.support.smtp.server import Action, ScriptedSMTPServer, Session, delay

MAILS = 300
KILLS = 24


@pytest.mark.slow
def test_kill(tmp_path: Path, smtp_server: ScriptedSMTPServer) -> None:
    """300 mails, two processors, each killed a dozen times while it sends: every mail arrives. Some
    arrive twice, so that none is lost, and the log has called each of these ambiguous before."""
    seed = int(os.environ.get('TEST_SEED', random.SystemRandom().randrange(10**6)))
    print(f'TEST_SEED={seed}')
    chance = random.Random(seed)
    # The server has a random generator of its own: the order of its threads is not fixed.
    pauses = random.Random(seed + 1)

    def linger(session: Session) -> Action:
        """Delay a mail around its final dot, where a kill matters."""
        return delay(pauses.random() * 0.1)

    for verb in ('MAIL', 'dot'):
        smtp_server.always(verb, linger)
    place = Place(tmp_path, smtp_server)
    ini = place.ini()
    envelopes = [make_envelope(f'user{n}@example.org', queued_at=time.time()) for n in range(MAILS)]
    place.queue.put(envelopes).publish()
    expected = {(mail.message_id, mail.recipients[0]) for mail in envelopes}
    children = [place.start(ini), place.start(ini)]
    try:
        end = time.monotonic() + 50
        for _ in range(KILLS):
            victim = chance.randrange(2)
            until(lambda victim=victim: 'watching' in children[victim].text, 20)  # type: ignore[misc]
            time.sleep(chance.random() * 0.3)  # the moment at random is what this test is about
            children[victim].process.kill()
            children[victim].process.wait()
            children[victim] = place.start(ini)
        until(lambda: not files(place.queue), max(end - time.monotonic(), 10))
        for child in children:
            child.says('watching')
        assert [child.stop() for child in children] == [0, 0]
    finally:
        for child in place.children:
            child.process.kill()
            child.process.wait()
        place.queue.close()
    log = '\n'.join(child.text for child in place.children)
    copies = smtp_server.pairs()
    assert set(copies) == expected
    repeated = {message_id: count for (message_id, _), count in copies.items() if count > 1}
    for message_id, count in repeated.items():
        lines = re.findall(rf'{re.escape(message_id)}: ambiguous for .*', log)
        assert len(lines) >= count - 1, f'{message_id} arrived {count} times: {lines}'
    assert smtp_server.violations == []
    assert 'Traceback' not in log
    print(f'{len(repeated)} of {MAILS} mails arrived more than once, each called ambiguous')
