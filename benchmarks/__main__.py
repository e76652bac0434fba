"""The menu: `python -m benchmarks` prints the map of this folder."""

import benchmarks


if __name__ == "__main__":
    print(benchmarks.__doc__.strip())
