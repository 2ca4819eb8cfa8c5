"""What identifies a model folder, and what is refused before any library opens it."""

import json
import pickle
import shutil
import subprocess

import pytest

from learning.artifacts import UnsafeArtifact, check_adapter, check_base_model, directory_digest

SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    (folder / "adapter_model.safetensors").write_bytes(SAFETENSORS)
    return folder


def test_digest_is_that_of_sha256sum(adapter):
    (adapter / "sub").mkdir()
    (adapter / "sub" / "notes.txt").write_text("x")
    listing = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    assert (
        directory_digest(adapter) == subprocess.check_output(listing, shell=True, cwd=adapter, text=True)[:64]
    )


def test_digest_sees_names_and_contents_and_not_the_folder_itself(adapter, tmp_path):
    digest = directory_digest(adapter)
    assert directory_digest(shutil.copytree(adapter, tmp_path / "copy")) == digest
    (adapter / "adapter_config.json").rename(adapter / "other.json")
    assert directory_digest(adapter) != digest


def test_digest_refuses_links_and_empty_folders(adapter, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsafeArtifact, match="empty"):
        directory_digest(tmp_path / "empty")
    with pytest.raises(UnsafeArtifact, match="no such folder"):
        directory_digest(tmp_path / "nowhere")
    (adapter / "link.json").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeArtifact, match="link"):
        directory_digest(adapter)


def break_nothing(folder):
    pass


def pickled_beside(folder):
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({}))


def pickled_under_another_name(folder):
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps({"a": list(range(100))}))


def program(folder):
    (folder / "modeling.py").write_text("import os")


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def not_lora(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3", "r": 1}))


def not_json(folder):
    (folder / "adapter_config.json").write_text("{")


def own_class(folder):
    config = {"peft_type": "LORA", "r": 1, "auto_mapping": {"parent_library": "os"}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (break_nothing, None),
        (pickled_beside, "pickled"),
        (pickled_under_another_name, "not a safetensors"),
        (program, "modeling.py"),
        (no_weights, "no adapter_model"),
        (not_lora, "IA3"),
        (not_json, "not an adapter configuration"),
        (own_class, "auto_mapping"),
    ],
)
def test_only_lora_in_safetensors_may_be_loaded(adapter, breaking, message):
    breaking(adapter)
    if message is None:
        check_adapter(adapter)
        return
    with pytest.raises(UnsafeArtifact, match=message):
        check_adapter(adapter)


def test_base_model_that_brings_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS)
    check_base_model(tmp_path)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(UnsafeArtifact, match="auto_map"):
        check_base_model(tmp_path)
