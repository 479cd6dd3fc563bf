"""Who may do what over HTTP: tokens, sessions of the page, and the gate that every request passes."""
