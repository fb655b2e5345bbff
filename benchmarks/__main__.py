"""`python -m benchmarks` runs the speed suite; the other benchmarks have commands of their own (README.md)."""

from benchmarks.speed import main

if __name__ == "__main__":
    main()
