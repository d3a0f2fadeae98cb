"""Files in, files out: what all commands that use a network share."""

import os

from experiments import data


def convert(work, paths, output, force=False, endings=(".png",)):
    """Makes files of files, and of folders of them.

    Names are kept, below a folder with its sub-folders. What cannot be read
    is named and left out.

    Args:
        work: Callable `(source, target)`, paths of the file to read and of
            the one to write, which returns a line to print.
        paths: List of strings, files and folders.
        output: String, the folder to write to.
        force: Boolean, whether to overwrite files.
        endings: Tuple of strings, those that names keep; others become the
            first of them.

    Returns:
        A list of strings, what went wrong, a line for each file.

    Raises:
        ValueError: before anything is done, if there is nothing to do, or a
            file would be written twice, in place of the one that it is made
            of, or, without `force`, of another one.
    """
    jobs = _jobs(paths, output, force, endings)
    failures = []
    for index, (source, target) in enumerate(jobs):
        print(f"[{index + 1}/{len(jobs)}] {source}", end="", flush=True)
        try:
            print(f": {work(source, target)}", flush=True)
        except (ValueError, OSError) as error:
            print(f": left out, {error}", flush=True)
            failures.append(f"{source}: {error}")
    if failures:
        print(f"{len(failures)} left out:", *failures, sep="\n  ")
    return failures


def save(image, path, **settings):
    """Writes a PIL image, whole or not at all."""
    stem, ending = os.path.splitext(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    image.save(f"{stem}.new{ending}", **settings)
    os.replace(f"{stem}.new{ending}", path)


def _jobs(paths, output, force, endings):
    """Pairs of files: what to read, and what to write."""
    if not paths:
        raise ValueError("Pass files or folders. Received: none")
    jobs = []
    for path in paths:
        if os.path.isdir(path):
            names = data.files_below(path)
            jobs += [(os.path.join(path, name), name) for name in names]
        elif os.path.exists(path):
            jobs.append((path, os.path.basename(path)))
        else:
            raise ValueError(
                f"There is no such file or folder. Received: {path!r}"
            )
    sources = {}
    for source, name in jobs:
        stem, ending = os.path.splitext(name)
        if ending.lower() not in endings:
            name = f"{stem}{endings[0]}"
        target = os.path.join(output, name)
        if target in sources:
            raise ValueError(
                "Two files would become the same file. Pass them one after "
                "the other, with two folders as --output. Received: "
                f"{sources[target]!r} and {source!r}, both to be {target!r}"
            )
        if os.path.exists(target) and os.path.samefile(source, target):
            raise ValueError(
                "A file is not to be overwritten by what is made of it: "
                f"pass another --output. Received: {source!r}"
            )
        if os.path.exists(target) and not force:
            raise ValueError(
                "The file exists, and is overwritten with --force only. "
                f"Received: {source!r}, to be {target!r}"
            )
        sources[target] = source
    return [(source, target) for target, source in sources.items()]
