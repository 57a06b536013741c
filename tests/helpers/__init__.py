"""What several tests need: small nets and detectors, data, damaged files, processes, others' tests."""
