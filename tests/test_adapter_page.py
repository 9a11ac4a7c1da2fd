"""The code on docs/adapters.md runs from top to bottom."""

import re
from pathlib import Path

import pytest
import torch

from randlora_core import adapter_names, disable_adapter, merge_error

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adapters.md"


@pytest.mark.filterwarnings("ignore:.*quantised again")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    scope = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), scope)
    model, x, y = scope["model"], scope["x"], scope["y"]
    assert adapter_names(model) == ("default", "summaries", "again")
    with disable_adapter(model):
        base = model(x)
    torch.testing.assert_close(y[1], base[1])
    assert not torch.allclose(y[0], base[0], atol=1e-4)
    error = float(re.search(r"\{'0': ([\d.e-]+)\}", capsys.readouterr().out)[1])
    assert error > 0
    with pytest.raises(ValueError, match="not merged"):
        merge_error(scope["quantised"])
