"""Invites, sessions and cookies, and the secret of an installation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from humanward.errors import UserError
from humanward.web import WebSettings, create_app, read_secret

from .conftest import Site, browser


def test_an_invite_is_used_once(site: Site) -> None:
    _, token = site.store.people.invite("labeler", "Ann")
    first, second = browser(site.app), browser(site.app)
    for client in (first, second):  # a look at the link, or a preview of it, uses nothing up
        page = client.get(f"/join/{token}")
        assert page.status_code == 200
        assert f'name="token" value="{token}"' in page.text
    answer = first.post("/join", data={"token": token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/label")
    assert first.get("/label").status_code == 200
    assert second.post("/join", data={"token": token}).status_code == 403
    assert second.get("/label").headers["location"] == "/sign-in"


def test_an_invite_expires(site: Site) -> None:
    _, token = site.store.people.invite("labeler", "Ann", hours=1)
    site.clock.now += 3601
    assert browser(site.app).post("/join", data={"token": token}).status_code == 403


def test_researchers_begin_with_the_run(site: Site) -> None:
    _, token = site.store.people.invite("researcher", "Rae")
    assert browser(site.app).post("/join", data={"token": token}).headers["location"] == "/run"


def cookie_of(site: Site) -> str:
    _, token = site.store.people.invite("labeler", "Ann")
    return browser(site.app).post("/join", data={"token": token}).headers["set-cookie"]


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(site: Site) -> None:
    cookie = cookie_of(site)
    assert re.fullmatch(r"humanward-[0-9a-f]{8}=[\w-]{43}; HttpOnly; Max-Age=604800; Path=/; SameSite=lax", cookie)


@pytest.mark.parametrize("how", [{"tls": True}, {"behind_proxy": True}], ids=lambda how: next(iter(how)))
def test_under_tls_the_cookie_is_bound_to_the_host(with_settings: Callable[..., Site], how: dict[str, bool]) -> None:
    site = with_settings(**how)
    assert re.fullmatch(r"__Host-humanward-\w{8}=[\w-]{43}; HttpOnly; Max-Age=604800; Path=/; SameSite=lax; Secure", cookie_of(site))
    assert browser(site.app).get("/health").headers["strict-transport-security"] == "max-age=31536000"


def test_two_runs_on_one_machine_have_two_cookies(site: Site) -> None:
    """Cookies do not tell ports apart."""
    names = {create_app(site.store, WebSettings(secret=secret * 64)).state.site.cookie for secret in "ab"}
    assert len(names) == 2


def test_signing_in_again_ends_the_session_before(site: Site) -> None:
    client = site.signed_in("labeler")
    old = dict(client.cookies)
    _, token = site.store.people.invite("labeler", "", "labeler-1")
    client.post("/join", data={"token": token})
    assert dict(client.cookies) != old
    assert client.get("/label").status_code == 200
    assert browser(site.app, cookies=old).get("/label").headers["location"] == "/sign-in"


def test_signing_out_ends_the_session_on_the_server(site: Site) -> None:
    client = site.signed_in("labeler")
    old = dict(client.cookies)
    answer = client.post("/sign-out", data={})
    assert answer.headers["location"] == "/sign-in"
    assert not client.cookies
    assert browser(site.app, cookies=old).get("/label").headers["location"] == "/sign-in"


def test_signing_out_everywhere_ends_all_sessions(site: Site) -> None:
    here = site.signed_in("labeler")
    _, token = site.store.people.invite("labeler", "", "labeler-1")
    there = browser(site.app)
    there.post("/join", data={"token": token})
    assert there.get("/label").status_code == 200
    here.post("/sign-out-everywhere", data={})
    assert there.get("/label").headers["location"] == "/sign-in"


@pytest.mark.parametrize("action", ["disable", "revoke", "forget"])
def test_who_is_shut_out_is_out_at_once(site: Site, action: str) -> None:
    admin, labeler = site.signed_in("admin"), site.signed_in("labeler")
    assert labeler.get("/label").status_code == 200
    assert admin.post(f"/run/people/labeler-1/{action}", data={"confirm": "labeler-1"}).status_code == 303
    assert labeler.get("/label").headers["location"] == "/sign-in"
    assert labeler.post("/api/questions", json={}).status_code == 401


def test_a_session_ends_after_a_night_and_after_a_week(site: Site) -> None:
    idle, busy = site.signed_in("labeler"), site.signed_in("labeler")
    for _ in range(13):
        site.clock.now += 3600
        assert busy.get("/label").status_code == 200
    assert idle.get("/label").headers["location"] == "/sign-in"
    for _ in range(7 * 24 - 14):
        site.clock.now += 3600
        assert busy.get("/account").status_code == 200
    site.clock.now += 3601
    assert busy.get("/account").headers["location"] == "/sign-in"


@pytest.mark.parametrize("value", ["", "x", "a" * 43, "a" * 5000, "%00", "'; DROP TABLE sessions; --", "é"])
def test_a_made_up_cookie_opens_nothing(site: Site, value: str) -> None:
    name = site.app.state.site.cookie
    answer = browser(site.app).get("/label", headers={"cookie": f"{name}={value}".encode()})
    assert answer.headers["location"] == "/sign-in"


def test_sessions_and_links_are_not_kept_in_clear(tmp_path: Path) -> None:
    from humanward.feedback import Store

    store = Store(tmp_path / "labels.db")
    _, token = store.people.invite("labeler", "Ann")
    session = store.people.redeem(token) or ""
    _, waiting = store.people.invite("labeler", "Bob")
    store.close()
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert not [secret for secret in (token, session, waiting) if secret.encode() in kept]


def test_signing_in_and_out_is_audited_without_addresses(site: Site) -> None:
    client = site.signed_in("labeler")
    client.post("/sign-out", data={})
    browser(site.app).post("/join", data={"token": "c" * 43})
    lines = site.store.people.audit_log()
    assert [(line.who, line.action) for line in lines[::-1]] == [
        ("labeler-1", "sign-in"),
        ("labeler-1", "sign-out"),
        ("", "sign-in refused"),
    ]
    assert all(re.fullmatch("[0-9a-f]{16}", line.request_id) for line in lines)
    assert "testclient" not in repr(lines)
    assert "c" * 43 not in repr(lines)


def test_nobody_is_there_before_somebody_is_invited(site: Site) -> None:
    assert site.store.people.all() == []


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    secret = read_secret(tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", secret)
    assert (tmp_path / "web-secret").stat().st_mode & 0o777 == 0o600
    assert read_secret(tmp_path) == secret
    other = tmp_path / "other"
    other.mkdir()
    assert read_secret(other) != secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    read_secret(tmp_path)
    (tmp_path / "web-secret").chmod(mode)
    with pytest.raises(UserError, match=f"web-secret: others may read it .mode {mode:o}.; remove it"):
        read_secret(tmp_path)


def test_a_secret_that_is_a_link_or_damaged_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("0" * 64)
    target.chmod(0o600)
    (tmp_path / "web-secret").symlink_to(target)
    with pytest.raises(UserError, match="not a file of this user"):
        read_secret(tmp_path)
    os.unlink(tmp_path / "web-secret")
    read_secret(tmp_path)
    (tmp_path / "web-secret").write_text("short")
    with pytest.raises(UserError, match="damaged"):
        read_secret(tmp_path)
