"""Images that are files in a folder for each guest: what drivers of such storages are made of."""
