"""Make cases from scanner images: read DICOM, recognise and register sequences, find the brain, write DICOM SEG."""
