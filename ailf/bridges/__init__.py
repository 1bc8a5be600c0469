"""Bridges to other libraries: each module needs the extra of its name, and the core imports none of them."""
