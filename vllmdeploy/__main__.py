"""`python -m vllmdeploy` and the console script."""

from __future__ import annotations


def main() -> None:
    import gc

    gc.disable()  # until a command runs: what builds all of them makes much, and no garbage
    from vllmdeploy.cli.endings import end_in_order

    end_in_order()
    from vllmdeploy.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
