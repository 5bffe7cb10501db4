"""Start a web page on this machine to click transmitters into a city and see their radio maps (extra `demo`)."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="folder or Hub id of a pipeline (default: the package's model)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, help="port (default: the first free one from 7860)")


def run(args: argparse.Namespace) -> int:
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("the demo needs Gradio: pip install 'radiodiff_diffusers[demo]'") from None
    from ..app import serving

    with serving(args.model, args.host, args.port) as (page, address):
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()
    return 0
