"""Make cases from scanner images: DICOM, recognition of sequences, registration, brain extraction, DICOM SEG."""
