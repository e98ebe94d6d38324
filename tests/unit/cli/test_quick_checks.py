"""What a caller got wrong is told before torch is imported: here it cannot be imported."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worlds import tiny as worlds
from tests.worlds.serving import zoo

_PROGRAM = """
import json, sys
sys.modules["torch"] = sys.modules["faiss"] = None  # importing them is an ImportError now
from typer.testing import CliRunner
from vision_sae.cli import app
from vision_sae_client.cli import app as client
found = []
for program, *arguments in json.load(sys.stdin):
    ended = CliRunner().invoke({"vision-sae": app, "vision-sae-client": client}[program], arguments)
    found.append([ended.exit_code, ended.stderr, repr(ended.exception)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``store``, ``d`` and ``zoo`` (a bundle of a model called tiny), pictures, files of text."""
    root = tmp_path_factory.mktemp("quick")
    zoo(root)
    worlds.picture_folder(root / "pictures", 1)
    (root / "text").write_text("layer,unit,description\n")
    (root / "data").write_bytes(b"SQLite is something else")
    (root / "odd name").mkdir()
    (root / "odd name" / "manifest.json").write_bytes((root / "zoo" / "manifest.json").read_bytes())
    (root / "broken").mkdir()
    (root / "broken" / "manifest.json").write_text("[]")
    return root


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


CASES = """
serve nowhere | nowhere is not a published bundle
serve store | store is not a published bundle
serve broken | broken is not a published bundle
serve zoo zoo | 'zoo'
serve odd_name | 'odd name'
serve zoo --port {taken} | :{taken} is in use
serve zoo --port 0 --metrics-port {taken} | --metrics-port
serve zoo --port 70000 | serve.port
serve zoo --host 203.0.113.7 | can be reached from other machines
serve zoo --host :: | can be reached from other machines
serve zoo --host 203.0.113.7 --allow-insecure-bind | 203.0.113.7
serve zoo --clip tiny | 'tiny' is no contrastive model
serve zoo --neurons nowhere | nowhere is not evidence of neurons
serve zoo --neurons zoo | zoo is not evidence of neurons
serve zoo --labels data | data is not a database
serve zoo --labels mysql://here/db | mysql
serve zoo --log-level loud | serve.log_level
harvest nowhere new | nowhere
harvest pictures new --model ./nowhere | ./nowhere
harvest pictures new --model demo:nothing | 'nothing'
harvest pictures new --site blocks.1 | 'blocks.1'
harvest text new --model vit_b_16 | 'vit_b_16'
harvest pictures new --store-dtype int8 | harvest.dtype
harvest pictures new --device gpu | 'gpu' is no device
train store new --dtype int8 | 'int8' is no precision
serve zoo --model-device tiny | 'tiny' is not MODEL=DEVICE
serve zoo --model-device tiny=gpu | serve.devices
serve zoo --model-device demo:clip=cpu | demo:clip is not served
train nowhere new | nowhere
train zoo new | zoo is not a finished ActivationStore
train store new --site blocks.9.mlp | 'blocks.9.mlp'
train store new --heldout nowhere | nowhere
train store new --images nowhere | nowhere
train store new --k 0 | train.k
train store new --architecture quantum | train.architecture
train store new --set prefixes | KEY=VALUE
sweep nowhere new | nowhere
sweep store new --heldout nowhere | nowhere
build nowhere d new | nowhere
build store nowhere new | nowhere
build store demo:nothing/blocks.1.update new | demo:nothing
delete nowhere --image a | nowhere
match zoo nowhere | nowhere
import nowhere new --store store | nowhere
import text new --store nowhere | nowhere
import text new --store store --site blocks.9.mlp | 'blocks.9.mlp'
export nowhere new | nowhere
describe nowhere | nowhere
describe zoo --clip tiny | 'tiny' is no contrastive model
describe zoo --describer nobody | describe.describer
describe zoo --probe-from nowhere | nowhere
label nowhere | --images
label ./nowhere --images pictures | ./nowhere
label nowhere --images nowhere | nowhere
label vit_b_16 --images pictures --site blocks.1 | 'blocks.1'
score nowhere text | nowhere
score zoo nowhere | nowhere
audit nowhere face | nowhere
audit zoo face --labels nowhere | nowhere
analyse zoo --images nowhere | nowhere
edit nowhere --images pictures | nowhere
export-labels nowhere new.csv | nowhere
export-labels nowhere new.txt | new.txt
score zoo text --out new.txt | new.txt
export-exemplars nowhere new | nowhere
review nowhere --out new | nowhere
review zoo --out new --answers nowhere | nowhere
evaluate dictionary nowhere --store store | nowhere
evaluate dictionary d --store nowhere | nowhere
evaluate dictionary d --store store --images nowhere | nowhere
evaluate dictionary d --store store --against nowhere | nowhere
evaluate labels nowhere text | nowhere
evaluate attribution nowhere --images pictures | nowhere
evaluate blocks nowhere --prompts text | nowhere
evaluate causal nowhere --prompts text | nowhere
evaluate causal zoo --prompts nowhere | nowhere
evaluate edits nowhere | nowhere
demo --port {taken} | :{taken} is in use
demo --port 0 --web-port {taken} | --web-port
client info --address ::1:50051 | [::1]:50051
client info --address nowhere | HOST:PORT
client web --port {taken} | :{taken} is in use
client web --address ::1:1 --port 0 | [::1]:1
"""


def test_mistakes_are_told_before_anything_heavy_is_imported(root: Path, taken: int) -> None:
    cases = []
    for line in CASES.format(taken=taken).strip().splitlines():
        words, _, says = line.partition(" | ")
        first, *others = words.split()
        program = ["vision-sae-client"] if first == "client" else ["vision-sae", first]
        arguments = [word.replace("odd_name", "odd name") for word in others]
        cases.append(([*program, *arguments], says))
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([arguments for arguments, _ in cases]),
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    wrong = []
    for (arguments, says), (status, said, error) in zip(
        cases, json.loads(ended.stdout), strict=True
    ):
        told = status == 2 and error == "SystemExit(2)" and said.count("\n") <= 3
        if not told or says not in said:
            wrong.append((arguments, says, status, said, error))
    assert not wrong


def test_a_dictionary_that_fits_nowhere_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision_sae.cli import checks
    from vision_sae.config import TrainConfig
    from vision_sae.errors import InvalidInputError, StorageFullError

    # 2 matrices of 32 x 64 float32 are 16,384 bytes; training keeps three numbers of each.
    settings = [TrainConfig(expansion=2)]
    monkeypatch.setattr("vision_sae.memory.available", lambda: 3 * 16_384)
    checks.check_training(root / "store", root / "new", settings)
    with pytest.raises(InvalidInputError, match="memory"):
        checks.check_training(root / "store", root / "new", settings * 2)
    monkeypatch.setattr("vision_sae.memory.available", lambda: None)  # a system that tells nothing
    with pytest.raises(StorageFullError, match="on another disk"):
        checks.check_room(root / "new" / "deeper", 10**18, field="dictionary")
