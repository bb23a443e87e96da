"""What everything rests on and nothing of the field is in: files, folders, processes, progress, random streams."""
