"""Training-free sequential models: popularity, decayed Markov chain, text kNN and the hybrid of the last two."""
