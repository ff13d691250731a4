"""PAD as a RecBole model, and its parts."""
