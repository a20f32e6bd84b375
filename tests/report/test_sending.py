"""A report may be made of somebody else's run, and is made to be sent: it shows what lies in the run's folder alone."""

import base64
import io
import os

import pytest
from PIL import Image

from apart_fast.errors import UserError
from apart_fast.report.write import READ, write_report
from apart_fast.runs.reading import read_runs
from tests.runs.states import write_run

SECRET = "xyzzy"


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def png():
    stream = io.BytesIO()
    Image.new("RGB", (3, 3)).save(stream, format="png")
    return stream.getvalue()


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_run_is_not_followed(run, tmp_path, name):
    (tmp_path / "secret").write_text(f'{{"epoch": 1, "token": "{SECRET}"}}\n')
    (run / name).unlink()
    os.symlink(tmp_path / "secret", run / name)
    with pytest.raises(UserError, match=f"{name} is a link to elsewhere, and a report shows only") as error:
        write_report([run], tmp_path / "report.html")
    assert "\n" not in str(error.value) and not (tmp_path / "report.html").exists()


def test_links_within_the_run_and_to_it_are(run, tmp_path):
    os.rename(run / "card.json", run / "other.json")
    os.symlink("other.json", run / "card.json")
    os.symlink(run, tmp_path / "link")
    (run / "perturbations.png").write_bytes(png())
    page = write_report([tmp_path / "link"], tmp_path / "report.html").read_text()
    assert base64.b64encode(png()).decode() in page


@pytest.mark.parametrize(
    "content", [SECRET.encode() * 50, b"", bytes(100), png()[:-20], b"\x89PNG\r\n\x1a\n" + b"x" * 99]
)
def test_what_is_no_picture_is_not_embedded(run, content):
    (run / "perturbations.png").write_bytes(content)
    with pytest.warns(UserWarning, match="perturbations.png is no picture: it is left out"):
        page = write_report([run], run / "report.html").read_text()
    assert "data:image/png" not in page and SECRET not in page


def test_a_picture_elsewhere_is_not_embedded(run, tmp_path):
    (tmp_path / "other.png").write_bytes(png())
    os.symlink(tmp_path / "other.png", run / "perturbations.png")
    with pytest.warns(UserWarning, match="perturbations.png is no file in the run's folder: it is left out"):
        assert read_runs([run])[0].picture is None
    os.unlink(run / "perturbations.png")
    os.mkfifo(run / "perturbations.png")  # is not waited for
    assert read_runs([run])[0].picture is None


def test_a_picture_of_more_pixels_than_any_run_draws(run):
    head = bytearray(png())
    head[16:24] = (60000).to_bytes(4, "big") * 2
    (run / "perturbations.png").write_bytes(head)
    with pytest.warns(UserWarning, match="no picture"):
        assert read_runs([run])[0].picture is None
