"""What is recorded of the machine, and the commit of the project's own checkout only."""

import os
import subprocess

import pytest

from apart_fast.runs.environment import PACKAGE, commit_of, environment


@pytest.fixture
def repository(tmp_path):
    """A repository with one commit, of a file and of the package `apart_fast` at its top."""
    package = tmp_path / "checkout" / "apart_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / ".gitignore").write_text("lib\n")
    git(package.parent, "init", "-q")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "first")
    return package.parent


def git(folder, *words):
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # tests run in hooks too
    env |= {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", "-C", str(folder), *words], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def install(folder):
    package = folder / "apart_fast"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    return package


def test_the_commit_of_its_own_checkout(repository):
    head = git(repository, "rev-parse", "--short", "HEAD")
    assert commit_of(repository / "apart_fast") == head
    (repository / "apart_fast" / "__init__.py").write_text("changed = True")
    assert commit_of(repository / "apart_fast") == f"{head}-dirty"


def test_no_commit_of_a_repository_that_the_package_is_installed_in(repository, tmp_path):
    site = install(repository / "lib" / "python3" / "site-packages")
    assert commit_of(site) is None
    git(repository, "add", "-f", str(site))  # even where somebody tracks what is installed
    assert commit_of(site) is None
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "of somebody else")
    assert commit_of(install(other)) is None  # at the top, but not tracked
    assert commit_of(install(tmp_path / "nowhere")) is None  # in no repository


def test_another_repository_that_git_was_told_of_does_not_count(repository, tmp_path, monkeypatch):
    head = commit_of(repository / "apart_fast")
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))  # as in a hook
    assert commit_of(repository / "apart_fast") == head


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


def test_the_package_is_where_it_looks():
    assert PACKAGE.name == "apart_fast" and (PACKAGE / "__init__.py").is_file()
