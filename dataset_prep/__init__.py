"""From raw data to RecBole atomic files and item text vectors. Imports nothing from `recbole_pad`."""
