"""A sealed credential opens for its project and origin only."""

import base64
import os
from uuid import uuid4

import pytest

from gateway.credentials import Unreadable, origin, seal, unseal

KEY = base64.urlsafe_b64encode(os.urandom(32))
PROJECT = uuid4()
URL = "https://api.example.com/v1"


def test_it_opens_for_any_path_of_its_origin() -> None:
    sealed = seal("sk-1", key=KEY, project_id=PROJECT, base_url=URL)
    assert b"sk-1" not in sealed
    for same in (URL, "https://API.example.com:443/other/v2"):
        assert unseal(sealed, key=KEY, project_id=PROJECT, base_url=same) == "sk-1"
    assert seal("sk-1", key=KEY, project_id=PROJECT, base_url=URL) != sealed


@pytest.mark.parametrize(
    "elsewhere",
    [
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
        "https://api.example.com.evil.example.com/v1",
        "https://evil.example.com/v1?api.example.com",
        "https://api.example.com@evil.example.com/v1",
        "https://api.example.com:443@evil.example.com/v1",
        "https://api.example.com\\@evil.example.com/v1",
        "https://evil.example.com\\.api.example.com/v1",
        "//api.example.com/v1",
        "",
    ],
)
def test_it_does_not_open_for_another_origin(elsewhere: str) -> None:
    sealed = seal("sk-1", key=KEY, project_id=PROJECT, base_url=URL)
    with pytest.raises(Unreadable) as raised:
        unseal(sealed, key=KEY, project_id=PROJECT, base_url=elsewhere)
    assert "sk-1" not in str(raised.value)


def test_it_does_not_open_for_another_project_or_key_nor_altered() -> None:
    sealed = seal("sk-1", key=KEY, project_id=PROJECT, base_url=URL)
    other_key = base64.urlsafe_b64encode(os.urandom(32))
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for text, key, project_id in [
        (sealed, KEY, uuid4()),
        (sealed, other_key, PROJECT),
        (altered, KEY, PROJECT),
        (sealed[:5], KEY, PROJECT),
    ]:
        with pytest.raises(Unreadable):
            unseal(text, key=key, project_id=project_id, base_url=URL)


def test_an_origin_is_scheme_host_and_port() -> None:
    assert origin("http://[::1]:80/v1") == "http://::1:80"
    assert origin("https://Api.Example.com/v1") == "https://api.example.com:443"
