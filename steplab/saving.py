"""What JupyterLab writes when a notebook is saved: pictures instead of widgets.

A saved widget is dead when the notebook is opened again ("model not found"), and hides its static twin.
`steplab lab` has every notebook pass through here.
"""

from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"


def keep_pictures(model: dict[str, Any], **_) -> None:
    """A `pre_save_hook` of Jupyter's contents manager; changes `model` where it is a notebook.

    Of a widget its picture stays, or its text where it has none; the state of widgets goes.
    """
    if model.get("type") != "notebook" or not isinstance(model.get("content"), dict):
        return
    for cell in model["content"].get("cells", ()):
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if len(data) > 1:
                data.pop(VIEW, None)
    model["content"].get("metadata", {}).pop("widgets", None)
