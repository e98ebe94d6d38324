"""Every code block of README.md and of the site runs, on small data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest import SkipTest

import pytest

from tests.docs import blocks
from tests.docs.world import SETTINGS, World
from tests.worlds import serving

PAGES = [page for page in blocks.pages() if list(blocks.parsed(page).examples())]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="session")
def server(world: World) -> Iterator[str]:
    """The address of a server of the pages' bundles, started once."""
    from vision_sae_server.loading import load_state

    from vision_sae.config import DescribeConfig, ServeConfig

    bundles = [world.runs / "my-dictionary", world.clip, world.generated / "my-generator"]
    config = ServeConfig(port=0, drain_seconds=2, clip="demo:clip")
    held = load_state(bundles, config, DescribeConfig(describer="caption-pmi"))
    with serving.address(held) as where:
        yield where


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(blocks.ROOT)))
def test_the_blocks_of_a_page_run(
    page: Path,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    needed = set(blocks.needs(page))
    if "server" in needed:
        monkeypatch.setenv("VISION_SAE_ADDRESS", request.getfixturevalue("server"))
        needed = needed - {"server"} | {"pictures"}
    world.fill(tmp_path, needed)
    monkeypatch.chdir(tmp_path)
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    document = blocks.parsed(page)
    with ExitStack() as stack:
        stack.callback(document.namespace.clear)
        for example in document.examples():
            with suppress(SkipTest):
                example.evaluate()


def test_every_block_is_run_or_left_out_with_a_reason() -> None:
    counted = blocks.count()
    fenced = [word for page in blocks.pages() for word in blocks.languages(page)]
    assert set(fenced) <= {*blocks.RUN, *blocks.SHOWN}, "a block has a language nobody knows"
    assert sum(counted) == sum(word in blocks.RUN for word in fenced)
    assert counted.run > counted.left_out


def test_commands_of_a_block_are_read_as_a_shell_reads_them() -> None:
    source = "vision-sae train a b \\\n    --k 3  # a comment\n\nvision-sae --help\n"
    assert list(blocks.commands(source)) == [
        ["vision-sae", "train", "a", "b", "--k", "3"],
        ["vision-sae", "--help"],
    ]


@pytest.mark.parametrize(
    ("block", "wrong"),
    [("sh\nrm -r x\n", "no command of ours"), ("sh\nvision-sae train\n", "Missing argument")],
)
def test_a_block_that_fails_is_told(tmp_path: Path, block: str, wrong: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```{block}```\n")
    (example,) = blocks.parsed(page).examples()
    with pytest.raises(AssertionError, match=wrong):
        example.evaluate()


def test_a_block_is_left_out_only_with_a_reason(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('<!-- skip: next "no server" -->\n\n```sh\nrm -r x\n```\n')
    kept, left_out = blocks.parsed(page).examples()
    kept.evaluate()
    with pytest.raises(Exception, match="no server"):
        left_out.evaluate()
