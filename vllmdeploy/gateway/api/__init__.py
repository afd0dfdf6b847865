"""What requests mean; how their bytes travel is not known here."""
