"""RecBole's data side: sequences, histories, frequencies, text vectors, loaders."""
