# Rules whose outputs are more than files: directories with all sorts of entries, and symlinks.

def _page_tree(ctx):
    tree = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [tree],
        inputs = [ctx.file.script],
        command = ". %s %s %d" % (ctx.file.script.path, tree.path, ctx.attr.pages),
        mnemonic = "PageTree",
    )
    return [DefaultInfo(files = depset([tree]), runfiles = ctx.runfiles([tree]))]

page_tree = rule(
    implementation = _page_tree,
    attrs = {
        "pages": attr.int(mandatory = True),
        "script": attr.label(allow_single_file = True, mandatory = True),
    },
)

def _listing(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".txt")
    ctx.actions.run_shell(
        outputs = [out],
        inputs = ctx.files.trees,
        command = "find -L %s -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum > %s" % (
            " ".join([tree.path for tree in ctx.files.trees]),
            out.path,
        ),
        mnemonic = "Listing",
    )
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles([out]))]

listing = rule(
    implementation = _listing,
    attrs = {"trees": attr.label_list(allow_files = True)},
)

def _linked(ctx):
    target = ctx.actions.declare_file(ctx.label.name + ".txt")
    link = ctx.actions.declare_file(ctx.label.name + ".link")
    ctx.actions.run_shell(
        outputs = [target, link],
        command = "echo linked > %s && ln -s %s %s" % (target.path, target.basename, link.path),
        mnemonic = "Linked",
    )
    return [DefaultInfo(files = depset([target, link]), runfiles = ctx.runfiles([target, link]))]

linked = rule(implementation = _linked)
