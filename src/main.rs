//! `mlx_lm`: generate text from a checkpoint. Arguments become options, options a stream of text on stdout.

mod cli;

fn main() {
    cli::main()
}
