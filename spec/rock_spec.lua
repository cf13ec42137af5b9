--- The rock: built from a clean copy of the checkout into an empty tree, and used from there, with no checkout on any path.

local checkout = require "spec.checkout"
local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"

local SCRIPT = 'return function(app) app:get("/hello", function() return 200, { msg = "Hello from a rock!" } end) end'

describe("the rock", function()
  local tree, elsewhere

  -- Runs a command in another folder, with nothing in the environment that leads to a checkout.
  local function from_elsewhere(argv)
    return table.move(argv, 1, #argv, 8, { "env", "-C", elsewhere, "-u", "LUA_PATH", "-uLUA_CPATH", "-uKORV_BUILD" })
  end

  setup(function()
    local copy = checkout "checkout"
    tree, elsewhere = support.path "tree", support.path "elsewhere"
    assert(support.run({ "mkdir", elsewhere }).code == 0)
    local made = support.run({ "sh", "-c", 'cd "$1" && exec luarocks --lua-version 5.4 make --deps-mode=none --tree "$2" korv-*.rockspec',
      "make", copy, tree }, { timeout = 240, env = { HOME = elsewhere } })
    assert(made.code == 0, made:describe "failed")
    assert(support.run({ "rm", "-r", copy }).code == 0)
  end)
  teardown(support.finish)

  it("holds every module", function()
    for name in uv.fs_scandir_next, (uv.fs_scandir(support.root .. "/lua/korv")) do
      assert.is_truthy(uv.fs_stat(tree .. "/share/lua/5.4/korv/" .. name), name)
    end
    assert.is_truthy(uv.fs_stat(tree .. "/lib/lua/5.4/korv/core.so"))
  end)

  it("serves and calls an endpoint through its command", function()
    local server = support.start(from_elsewhere { tree .. "/bin/korv", "serve", "--host", "127.0.0.1", "--port", "0", "--authorized-keys",
      support.key "client" .. ".pub", support.write("hello.lua", SCRIPT) })
    server.port = tonumber((server:line() or ""):match "port (%d+),") or error(server:describe "does not listen")
    server.host_key, server.must_end_well = elsewhere .. "/ssh_host_ed25519_key", true
    local done = support.run(from_elsewhere { tree .. "/bin/korv", "call", "-i", support.key "client", "--known-hosts",
      support.path "accepted", "--accept-new", "127.0.0.1:" .. server.port, "GET", "/hello" })
    assert.same({ 0, '{"msg":"Hello from a rock!"}\n', "" }, { done.code, done.stdout, done.stderr })
  end)

  it("serves and calls an endpoint through require", function()
    local program = support.write("program.lua", [[
      local tree, key = ...
      local korv = require "korv"
      for name, path in pairs { ["korv"] = package.path, ["korv.core"] = package.cpath } do
        assert(package.searchpath(name, path):sub(1, #tree) == tree)
      end
      local server = assert(korv.server { host = "127.0.0.1", port = 0, host_keys = { "made_host_key" },
        authorized_client_keys = key .. ".pub" })
      server:add_callback("GET", "/hello", function() return 200, { msg = "Hello World!" } end)
      server:listen()
      local client = assert(korv.client { host = "127.0.0.1", port = server.port, client_keys = { key }, known_hosts = false })
      print(korv.version, client:get("/hello").body.msg)]])
    local done = support.run(from_elsewhere { "env", ("LUA_PATH=%s/share/lua/5.4/?.lua;%s/share/lua/5.4/?/init.lua;;"):format(tree, tree),
      ("LUA_CPATH=%s/lib/lua/5.4/?.so;;"):format(tree), "lua5.4", program, tree, support.key "client" })
    assert.same({ 0, 0, korv.version .. "\tHello World!\n" }, { done.code, done.signal, done.stdout })
  end)

  it("has the manual page", function()
    local page = ("%s/lib/luarocks/rocks-5.4/korv/%s-1/share/man/man1/korv.1"):format(tree, korv.version)
    assert.equal(support.read(support.root .. "/docs/korv.1"), support.read(page))
  end)

  it("has the version of the module", function()
    assert.is_truthy(uv.fs_stat(("%s/lib/luarocks/rocks-5.4/korv/%s-1"):format(tree, korv.version)))
  end)
end)
