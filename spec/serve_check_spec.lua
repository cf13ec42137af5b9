--- `korv serve --check`: what it says of what would be served, and that it serves nothing. And --no-watch: nothing changes but at SIGHUP.

local pair = require "spec.pair"
local changing = require "spec.changing"
local support = require "spec.support"
local uv = require "luv"

local GOOD = [[
local names = require "lib.names"
pcall(require, "lib.absent")
return function(app)
  for _, name in ipairs(names) do app:get("/" .. name, function() return 200, name end) end
end
]]

local count = 0

-- Files in a folder of their own; returns its path. The good ones have two endpoints, but for what is said otherwise.
local function folder(files)
  count = count + 1
  local name = "checked" .. count
  assert(uv.fs_mkdir(support.path(name), 448))
  assert(uv.fs_mkdir(support.path(name .. "/lib"), 448))
  local all = { ["one.lua"] = GOOD, ["lib/names.lua"] = 'return { "ann", "bob" }\n' }
  for file, text in pairs(files or {}) do all[file] = text end
  for file, text in pairs(all) do support.write(name .. "/" .. file, text) end
  return support.path(name)
end

local function check(...)
  return support.run(changing.argv { "--check", ... }, { timeout = 10 })
end

local function assert_refuses(done, ...)
  assert.same({ 1, 0, "" }, { done.code, done.signal, done.stdout })
  assert.matches("^korv: [^\n]+\n$", done.stderr)
  for _, part in ipairs { ... } do assert.is_truthy(done.stderr:find(part, 1, true), ("%q lacks %q"):format(done.stderr, part)) end
end

describe("korv serve --check", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("counts what there is, and ends with 0", function()
    local done = check("--authorized-keys", support.authorized_keys("ann", "bob", "cleo"), folder(), support.write("more.lua",
      'return function(app) app:store("/more", function() return 200 end) end'))
    assert.same({ 0, "", "korv: all well; endpoints: 3, files: 3, authorized keys: 3\n" }, { done.code, done.stderr, done.stdout })
  end)

  it("binds no port: it may check for a server that runs", function()
    local path = folder()
    local server = changing.command { path }
    local done = check("--port", tostring(server.port), path)
    assert.same({ 0, "" }, { done.code, done.stderr })
  end)

  it("says of a script what is wrong, with file and line", function()
    local path = folder { ["two.lua"] = "return function(app)\n  app:get(\nend" }
    assert_refuses(check(path), path .. "/two.lua:3: ")
    path = folder { ["lib/names.lua"] = "\n\nlocal x = y.z" }
    assert_refuses(check(path), path .. "/lib/names.lua:3: ")
    path = folder { ["two.lua"] = "return function(app)\n  app:get('/ann', function() end)\nend" }
    assert_refuses(check(path), "GET /ann", path .. "/one.lua:4", path .. "/two.lua:2")
    path = folder { ["lib/names.lua"] = "return {}" }
    assert_refuses(check(path), "no endpoint")
  end)

  it("runs the scripts' own checks, which may wait, and one may refuse", function()
    local text = 'return function(app)\n  app:check(function() require("korv").sleep(0.01) return %s end)\nend'
    local done = check(folder { ["two.lua"] = text:format "true" })
    assert.same({ 0, "" }, { done.code, done.stderr })
    local path = folder { ["two.lua"] = text:format 'nil, "no database"' }
    assert_refuses(check(path), path .. "/two.lua:2", "app:check refused: no database")
  end)

  it("refuses keys that nobody could use, and tells of a line that cannot be", function()
    local missing, path = support.path "no_such_keys", folder()
    assert_refuses(check("--authorized-keys", missing, path), missing)
    local bad = support.write("no_host_key", "not a key\n")
    uv.fs_chmod(bad, 384)
    assert_refuses(check("--host-key", bad, path), bad)
    local broken = support.write("one_broken", "ssh-ed25519 AAAA broken\n" .. support.read(support.key "client" .. ".pub"))
    local done = check("--authorized-keys", broken, path)
    assert.equal(0, done.code)
    assert.matches("authorized keys: 1\n$", done.stdout)
    assert.is_truthy(done.stderr:find("warn " .. broken .. ":1: ", 1, true), done.stderr)
  end)

  it("ends although a script has begun what does not end", function()
    local done = check(folder { ["two.lua"] = [[
      require("luv").new_timer():start(10, 10, function() end)
      require("korv").every(0.01, function() error "a timer of what does not serve" end)
      return function() end]] })
    assert.same({ 0, "" }, { done.code, done.stderr })
  end)
end)

describe("korv serve --no-watch", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("loads scripts anew at SIGHUP, not when they change", function()
    local path = folder()
    local server = changing.command { "--no-watch", path }
    local client = assert(pair.dial(server))
    assert.equal(404, client:get("/cleo").code)
    support.write(("checked%d/lib/names.lua"):format(count), 'return { "ann", "cleo" }\n')
    local function is_reloaded() return server.stderr:find "reloaded: generation 2, endpoints: 2" ~= nil end
    assert.is_false(support.wait_for(is_reloaded, 0.3))
    assert.equal(404, client:get("/cleo").code)
    assert.equal(0, uv.kill(server.pid, "sighup"))
    assert.is_true(support.wait_for(is_reloaded), server.stderr)
    assert.equal(200, client:get("/cleo").code)
  end)
end)
