"""Encode-time adaptation of D to one picture: bias sets (L2C III-D) and modulators (OML 3.3)."""
