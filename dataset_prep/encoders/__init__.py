"""The frozen models that turn item texts into vectors, one module per family; `text_encoders` names them."""
