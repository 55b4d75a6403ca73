"""The form that a generated text is to have: what may be asked, and whether it can be had."""
