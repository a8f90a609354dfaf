"""A secret is masked in each form in which a library may print it: as it is, in an address, in Python's quotes."""

from urllib.parse import quote

import pytest

from ratplus.records.secrets import safe_environment, scrub, scrub_tree

SECRET = "p'a\\ss/w\u00f6rd+\t{1}"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET, safe=""),
        repr(SECRET)[1:-1],
        repr({"a": SECRET}),
        f"https://me:{quote(SECRET, safe='')}@h/",
    ],
)
@pytest.mark.parametrize("name", ["MY_API_KEY", "HF_TOKEN", "DB_PASSWORD"])
def test_every_form_is_masked(monkeypatch, form, name):
    monkeypatch.setenv(name, SECRET)
    text = scrub(f"before {form} after")
    for part in (SECRET, quote(SECRET, safe=""), repr(SECRET)[1:-1]):
        assert part not in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert scrub_tree({"x": [form]}) == {"x": [scrub(form)]}


def test_where_a_secret_lies_is_none(monkeypatch):
    for ending in ("_SOCK", "_FILE", "_PATH", "_DIR"):
        monkeypatch.setenv(f"MY_TOKEN{ending}", f"/run/user/secret{ending}")
        assert scrub(f"see /run/user/secret{ending}") == f"see /run/user/secret{ending}"
    monkeypatch.setenv("PWD", "/home/somebody")
    assert scrub("cd /home/somebody") == "cd /home/somebody"
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hunter2hunter2@host/db")
    assert "hunter2hunter2" not in scrub("it was hunter2hunter2")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    assert "MY_API_KEY" not in safe_environment()
