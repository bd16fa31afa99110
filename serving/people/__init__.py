"""People: in which groups they are, what is known of them, what they are sent, and how they are forgotten."""
