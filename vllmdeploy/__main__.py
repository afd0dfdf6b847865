"""`python -m vllmdeploy` and the console script."""

from __future__ import annotations


def main() -> None:
    from vllmdeploy.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
