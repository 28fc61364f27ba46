"""From the scanner to a case: DICOM, recognition of sequences, registration, brain extraction, DICOM SEG."""
