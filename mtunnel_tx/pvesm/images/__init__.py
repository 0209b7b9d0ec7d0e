"""For drivers of storages whose images are files in a folder for each guest."""
