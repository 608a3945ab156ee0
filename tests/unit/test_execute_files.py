from __future__ import annotations

from pathlib import Path

from monitor.execute_files import Nearby


def tree(top: Path, *names: str) -> None:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_where_a_name_is_found(tmp_path: Path) -> None:
    tree(tmp_path, "a/b/tool", "a/tool", "z/tool", "a/other", ".git/tool", "a/node_modules/tool")
    nearby = Nearby(tmp_path)
    assert nearby.directories("tool") == [tmp_path / "a", tmp_path / "z", tmp_path / "a/b"]
    assert nearby.directories("other") == [tmp_path / "a"]
    assert nearby.directories("none") == []


def test_it_is_looked_through_once_and_when_asked(tmp_path: Path) -> None:
    nearby = Nearby(tmp_path)
    tree(tmp_path, "tool")
    assert nearby.directories("tool") == [tmp_path]
    tree(tmp_path, "later")
    assert nearby.directories("later") == []


def test_links_are_not_followed(tmp_path: Path) -> None:
    tree(tmp_path, "a/tool")
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert Nearby(tmp_path).directories("tool") == [tmp_path / "a"]


def test_it_is_bounded(tmp_path: Path) -> None:
    tree(tmp_path, *(f"{n:03}/tool" for n in range(50)))
    assert len(Nearby(tmp_path, files_most=20).directories("tool")) == 20
    assert len(Nearby(tmp_path, seconds_most=-1).directories("tool")) == 0


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    assert Nearby(tmp_path / "none").directories("tool") == []
