"""Functions count -> value, traceable: wsd, linear decay, refined, step law, ..."""
