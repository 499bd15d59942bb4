"""Bilevel problems, their hypergradients with a certificate, and the algorithms that use them."""
