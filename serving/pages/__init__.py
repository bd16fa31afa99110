"""Pages: several lists in one answer, their shelves filled and put in order for a person before one deadline."""
