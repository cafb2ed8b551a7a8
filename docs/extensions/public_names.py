# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""References in docstrings, by whichever path they name an object, lead to the room that exports it.

What is exported by no room, or is of another library, is plain text; what does not exist at all stays an error.
"""

import builtins
import importlib
import pkgutil
import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon.docstring import GoogleDocstring

import lightning_crmt


def find(path: str) -> Any:
    """The object of a dotted path, or None.

    >>> find("lightning_crmt.attacks.pgd.PGD").__name__, find("lightning_crmt.attacks.pgd.DGP")
    ('PGD', None)
    """
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except (ImportError, ValueError):
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def named_somewhere(name: str) -> bool:
    """Whether some module, or a class in one, has an attribute of this name: a short name in its own file."""
    head, *rest = name.split(".")
    for module in [module for key, module in sys.modules.items() if key.startswith("lightning_crmt")]:
        found = getattr(module, head, None)
        for part in rest:
            found = getattr(found, part, None)
        if found is not None:
            return True
        if any(isinstance(each, type) and hasattr(each, name) for each in vars(module).values()):
            return True
    return False


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.reference | nodes.TextElement | None:
    """A link to where the object is documented, or its name as text; None, which is an error, if there is no such."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].partition("[")[0]
    # A sentence before a colon, which napoleon takes for a type; a type with a comma in it, which is split there.
    if " " in target or hasattr(builtins, target):
        return shown
    wanted = find(target)
    if wanted is None:
        return shown if named_somewhere(target) else None
    domain = env.domains.python_domain
    last = target.rpartition(".")[2]
    for name in domain.objects:
        if name.rpartition(".")[2] == last and find(name) is wanted:
            made = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, shown)
            return made if isinstance(made, nodes.reference) else None
    return shown


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    # A process that writes pages may not have read those whose names it looks up.
    for module in pkgutil.walk_packages(lightning_crmt.__path__, "lightning_crmt."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # What a property says before a colon is a sentence, and no type.
    GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True}
