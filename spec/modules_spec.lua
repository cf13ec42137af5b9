--- `require`, `load` and globals of endpoint scripts: each generation and each folder has its own.

local korv = require "korv"
local pair = require "spec.pair"
local scripts = require "spec.scripts"

local endpoint, get, load_text = scripts.endpoint, scripts.get, scripts.load_text

-- What GET /x of a script answers, which these files lie beside.
local function answer(text, files)
  local _, made, message = load_text(text, files)
  if not made then error(message, 2) end
  return select(2, get(made, "/x"))
end

-- Why a script was not loaded, the folder being left out.
local function refused(text, files)
  local path, made, message, name = load_text(text, files)
  assert(not made and name == "ELOAD")
  return (message:gsub(pair.literal(path:match "^.*/"), ""))
end

describe("a module beside the script", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("is found, as a file and as a folder, and given its name and path", function()
    assert.same({ "one", "two", "deep.three" }, answer(
      endpoint "return 200, { require 'one', require 'two', (require 'deep.three') }",
      { ["one.lua"] = "return 'one'", ["two/init.lua"] = "return 'two'", ["deep/three.lua"] = "return (...)" }))
    assert.matches("/one%.lua one$", answer(endpoint("return 200, path .. ' ' .. name",
      "local m, path = require 'one' local name = m"), { ["one.lua"] = "return (...)" }))
  end)

  it("is loaded once, shared by the scripts of a folder and what they require, and anew in each generation and folder", function()
    local files = {
      ["lib/one.lua"] = "return { other = require 'lib.other' }", ["lib/other.lua"] = "return {}",
      ["a.lua"] = "local one, other = require 'lib.one', require 'lib.other'\n" ..
        "return function(app) app:get('/a', function() return 200, { one, other, one.other } end) end",
      ["b.lua"] = "local one = require 'lib.one'\nreturn function(app) app:get('/b', function() return 200, one end) end",
    }
    local folder = scripts.folder(files)
    local made = assert(scripts.load(folder))
    local _, a = get(made, "/a")
    local _, b = get(made, "/b")
    assert.is_true(a[1] == b and a[2] == a[3])
    local _, next_a = get(assert(scripts.load(folder)), "/a")
    assert.is_false(next_a[1] == a[1])
    files["a.lua"], files["b.lua"] = files["b.lua"], nil
    files["a.lua"] = files["a.lua"]:gsub("/b", "/other")
    made = assert(scripts.load { folder, scripts.folder(files) })
    assert.is_false(select(2, get(made, "/b")) == select(2, get(made, "/other")))
  end)

  it("returns what the stock require would", function()
    assert.same({ true, true, false, "set" }, answer(endpoint(
      "return 200, { require 'nothing', require 'nothing', require 'no', (require 'sets') }"), {
      ["nothing.lua"] = "", ["no.lua"] = "return false", ["sets.lua"] = "package.loaded[...] = 'set'",
    }))
  end)

  it("is loaded again where it was taken out of package.loaded", function()
    assert.is_false(answer(endpoint("return 200, one == two",
      "local one = require 'one' package.loaded.one = nil local two = require 'one'"), { ["one.lua"] = "return {}" }))
  end)

  it("goes before an installed one, but not before korv, luv, cjson and Lua's own", function()
    local files = { ["argparse.lua"] = "return 'ours'" }
    for _, name in ipairs { "korv", "luv", "cjson", "string" } do files[name .. ".lua"] = "error 'no'" end
    files["korv/task.lua"] = "error 'no'"
    assert.same({ "ours", true, true, true, true }, answer(endpoint(
      "return 200, { require 'argparse', require 'luv' == luv, require 'cjson' == cjson, require 'string' == string, task ~= nil }",
      "local luv, cjson, task = require 'luv', require 'cjson', require 'korv.task' require 'korv'"), files))
    assert.is_nil(package.loaded.argparse == "ours" or nil)
  end)

  it("is found on a package.path of the script's own, where installed ones stay everybody's", function()
    local lib = scripts.folder { ["far.lua"] = "Far = {} return Far" }
    local before = package.path
    local body = answer(endpoint("return 200, { far, Far, require 'argparse' }",
      ("package.path = %q .. package.path local far = require 'far'"):format(lib .. "/?.lua;")))
    assert.is_table(body[1])
    assert.equal(body[1], body[2])
    assert.equal(require "argparse", body[3])
    assert.is_nil(package.loaded.far)
    assert.equal(before, package.path)
  end)

  it("may be one that the script makes", function()
    assert.equal("made", answer(endpoint("return 200, require 'made'", "package.preload.made = function() return 'made' end")))
    assert.is_nil(package.preload.made)
  end)

  it("sees a package library of its own, where the path of C modules is everybody's", function()
    local before = package.cpath
    assert.same({ true, true, "x" }, answer(endpoint("return 200, { same, mine, package.cpath }",
      "local same, mine = require 'package' == package, package.loaded._G == _G package.cpath = 'x'")))
    local after = package.cpath
    package.cpath = before
    assert.equal("x", after)
  end)

  it("may wait while it is loaded, and be required by two at once", function()
    local _, made = load_text(endpoint "return 200, (require 'slow')", { ["slow.lua"] = "require 'korv'.sleep(0.01) return 'slow'" })
    local handler, answers = made.app:handler(), {}
    for i = 1, 2 do
      korv.spawn(function() answers[i] = table.pack(handler { verb = "GET", resource = "/x" }) end)
    end
    pair.wait_for(function() return answers[1] and answers[2] end)
    assert.same({ { n = 2, 200, "slow" }, { n = 2, 200, "slow" } }, answers)
  end)

  it("gets the modules of its generation where an endpoint requires it later", function()
    local _, made = load_text(endpoint "Count = (Count or 0) + 1 return 200, require 'late'", { ["late.lua"] = "return Count" })
    local handler = made.app:handler()
    handler { verb = "GET", resource = "/x" }
    assert.equal(1, select(2, handler { verb = "GET", resource = "/x" }))
    assert.is_nil(rawget(_G, "Count"))
  end)
end)

describe("a module that fails", function()
  setup(pair.begin)
  teardown(pair.finish)

  for what, case in pairs {
    ["at its file and line: syntax"] = { "broken.lua:2: <name> expected near '='", { ["broken.lua"] = "\nlocal = 1" } },
    ["at its file and line: a runtime error"] = { "broken.lua:2: boom", { ["broken.lua"] = "\nerror 'boom'" } },
    ["at its file and line: one that another requires"] =
      { "inner.lua:1: boom", { ["broken.lua"] = "require 'inner'", ["inner.lua"] = "error 'boom'" } },
    ["where it is missing"] = { "broken.lua:1: module 'no.such' not found, neither beside the script (/) nor on Lua's path",
      { ["broken.lua"] = "local _ = require 'no.such'" } },
    ["where it is missing, by a last call"] =
      { "broken.lua: module 'no.such' not found, neither beside the script (/) nor on Lua's path",
        { ["broken.lua"] = "return require 'no.such'" } },
    ["where it is in a loop"] =
      { "c.lua:1: loop: a -> b -> c -> a", { ["broken.lua"] = "local a = require 'a'", ["a.lua"] = "local b = require 'b'",
        ["b.lua"] = "local c = require 'c'", ["c.lua"] = "local a = require 'a'" } },
    ["where it requires itself"] = { "broken.lua: loop: broken -> broken", { ["broken.lua"] = "return require 'broken'" } },
    ["where its name is none"] = { "broken.lua:1: require: the name of a module is a string (got a nil)",
      { ["broken.lua"] = "local _ = require(nil)" } },
  } do
    it("is told " .. what, function()
      local message = refused("local b = require 'broken'\nreturn b", case[2]):gsub("%(%S*%)", "(/)")
      assert.equal(case[1], message)
    end)
  end

  it("is told by the whole of a path, however long it is", function()
    local long = ("long"):rep(30)
    local path, _, message = load_text("local b = require 'broken'\nreturn b",
      { ["broken.lua"] = "return require '" .. long .. ".x'", [long .. "/x.lua"] = "\nerror 'boom'" })
    assert.equal(path:gsub("app%.lua$", long .. "/x.lua:2: boom"), message)
  end)

  it("has its whole stack in the log", function()
    local before = korv.log.level "debug"
    refused("local b = require 'broken'\nreturn b", { ["broken.lua"] = "local function deep() error 'boom' end\ndeep()" })
    korv.log.level(before)
    pair.wait_for_log "debug loading failed: .*boom.*broken%.lua:1: in .*broken%.lua:2: in .*app%.lua:1: in "
  end)

  it("may be caught, and required again", function()
    assert.same({ false, false, "fine" }, answer(endpoint("return 200, { ok, again, (require 'fine') }",
      "local ok = pcall(require, 'broken') local again = pcall(require, 'broken')"),
      { ["broken.lua"] = "require 'broken_too'", ["broken_too.lua"] = "error 'boom'", ["fine.lua"] = "return 'fine'" }))
  end)

  it("is in no loop with one that was cancelled on the same coroutine", function()
    local path = scripts.folder { ["app.lua"] = endpoint("return 200", "require 'slow'"), ["slow.lua"] = "require 'korv'.sleep(1000)" }
    for _ = 1, 3 do
      local _, message = scripts.load(path, { limit = 0.02 })
      assert.matches("slow%.lua:1: stopped after 0.02 s of loading$", message)
    end
  end)
end)

describe("globals of a script", function()
  setup(pair.begin)
  teardown(pair.finish)

  local function is_kept(text)
    answer(endpoint("return 200", text))
    local leaked = rawget(_G, "Leaked")
    _G.Leaked = nil
    assert.is_nil(leaked, text)
  end

  it("stay inside, however they are written", function()
    for _, text in ipairs {
      "Leaked = 1", "_G.Leaked = 1", "_ENV.Leaked = 1", "rawset(_G, 'Leaked', 1)", "load('Leaked = 1')()", "load('_G.Leaked = 1')()",
      "load('Leaked = 1', 'name', 't')()", "load(coroutine.wrap(function() coroutine.yield 'Leaked = 1' end))()",
      "load('Leaked = 1', 'x', 't', _ENV)()", "load('Leaked = 1', 'x', 't', {})()", "package.loaded._G.Leaked = 1",
      "require '_G'.Leaked = 1", "(function() Leaked = 1 end)()", "coroutine.wrap(function() Leaked = 1 end)()",
      "local _ENV = setmetatable({}, { __index = _ENV }) Leaked = 1", "function Leaked() end",
    } do is_kept(text) end
  end)

  it("stay inside in files, too", function()
    for _, call in ipairs { "dofile(path)", "loadfile(path)()", "loadfile(path, 't')()", "loadfile(path, 't', _ENV)()" } do
      local lib = scripts.folder { ["lib.lua"] = "Leaked = 1 return 'lib'" }
      is_kept(("local path = %q\nassert(%s == 'lib')"):format(lib .. "/lib.lua", call))
    end
  end)

  it("are read from the program's, and shared by the scripts and modules of a folder alone", function()
    _G.Shared_by_program = "program" -- luacheck: ignore 122
    local a = "Folder = (Folder or '') .. 'a'\n" ..
      "return function(app) app:get('/a', function() return 200, { Folder, Shared_by_program } end) end"
    local b = "require 'm'\nreturn function(app) app:get('/b', function() return 200, Folder end) end"
    local both = scripts.folder { ["a.lua"] = a, ["b.lua"] = b, ["m.lua"] = "Folder = Folder .. 'm' return true" }
    local made = assert(scripts.load {
      both .. "/a.lua", both .. "/b.lua", scripts.folder { ["a.lua"] = (a:gsub("/a", "/other")) },
    })
    assert.same({ "am", "program" }, select(2, get(made, "/a")))
    assert.same("am", select(2, get(made, "/b")))
    assert.same({ "a", "program" }, select(2, get(made, "/other")))
    _G.Shared_by_program = nil -- luacheck: ignore 122
  end)

  it("may be none, where the script says so", function()
    assert.is_true(answer(endpoint("return 200, ok", "local ok = load('return x == nil', 'x', 't', {})()")))
    assert.is_true(answer(endpoint("return 200, not pcall(load('x = 1', 'x', 't', nil))")))
  end)

  it("is where load tells what is wrong as the stock one does", function()
    assert.same({ false, "[string \"x x\"]:1: syntax error near 'x'" },
      answer(endpoint "local f, m = load('x x') return 200, { f or false, m }"))
    assert.matches("cannot open no/such", answer(endpoint "local _, m = pcall(dofile, 'no/such') return 200, m"))
  end)
end)

describe("the files of a generation", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("are all that was loaded or looked for beside the scripts", function()
    local path, made = load_text(
      endpoint("return 200", "require 'one' require 'two' pcall(require, 'none') require 'argparse' require 'luv'"),
      { ["one.lua"] = "", ["two/init.lua"] = "" })
    local names = {}
    for i, file in ipairs(made.files) do names[i] = file:sub(#path:match "^.*/" + 1) end
    assert.same({
      "app.lua", "one.lua", "two.lua", "two/init.lua", "none.lua", "none/init.lua", "argparse.lua", "argparse/init.lua",
    }, names)
    assert.same({}, made.folders)
    local folder = scripts.folder { ["app.lua"] = endpoint "return 200" }
    made = assert(scripts.load(folder .. "/"))
    assert.same({ { folder }, { folder .. "/app.lua" } }, { made.folders, made.files })
  end)
end)
