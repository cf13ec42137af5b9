--- Reloads while a server is under load: many generations, a third of which cannot be loaded. Nobody who calls notices but by the new
-- answers. A twentieth of the reloads, and all of them with KORV_FULL=1.

local numbered = require "spec.numbered"
local pair = require "spec.pair"
local changing = require "spec.changing"
local korv = require "korv"
local support = require "spec.support"
local uv = require "luv"
local waiting = require "spec.waiting"

local CONNECTIONS, IN_FLIGHT = 3, 6
local RESOURCES = { "/a", "/a/later", "/b/later", "/c", "/b", "/c/later" }
local LOAD_LIMIT = 0.3

local problems -- what must not be

local function problem(format, ...)
  if #problems < 10 then problems[#problems + 1] = format:format(...) end
end

local function assert_no_problem() assert.same({}, problems) end

-- What all connections have seen.
local seen = {}
function seen.reset() seen.numbers, seen.newest, seen.flawed = {}, 0, {} end

-- One generation is of one number, in each of its scripts and modules, and of none that could not be loaded.
local function check_whole(body)
  local number = body.numbers[1]
  for _, other in ipairs(body.numbers) do
    if other ~= number then problem("generation %d is of the numbers %s", body.generation, table.concat(body.numbers, " ")) end
  end
  if seen.flawed[number] then problem("number %d serves, which is broken", number) end
  local known = seen.numbers[body.generation]
  if known and known ~= number then problem("generation %d is of the numbers %d and %d", body.generation, known, number) end
  seen.numbers[body.generation] = number
  seen.newest = math.max(seen.newest, number)
end

-- The load ------------------------------------------------------------------------------------------------------------------------------

local Flow = {}
Flow.__index = Flow

-- Requests are taken in the order in which they were sent, whenever their answers come.
local function check_order(flow, i, generation)
  flow.generations[i] = generation
  while flow.generations[flow.first] do
    local current = flow.generations[flow.first]
    if current < flow.last then problem("request %d: generation %d after %d", flow.first, current, flow.last) end
    flow.generations[flow.first], flow.last, flow.first = nil, current, flow.first + 1
  end
end

function Flow:ask()
  local i = self.sent + 1
  self.sent, self.in_flight = i, self.in_flight + 1
  self.client:call("GET", RESOURCES[i % #RESOURCES + 1], nil, { callback = function(response, message)
    self.in_flight = self.in_flight - 1
    if not response or response.code ~= 200 then
      self.running = false
      return problem("request %d: %s", i, message or response.code)
    end
    check_whole(response.body)
    check_order(self, i, response.body.generation)
    if self.running then self:ask() end
  end })
end

local function flow_on(client)
  local flow = setmetatable({ client = client, sent = 0, in_flight = 0, running = true, generations = {}, first = 1, last = 0 }, Flow)
  for _ = 1, IN_FLIGHT do flow:ask() end
  return flow
end

-- A stream ends in the generation that it began in.
local function stream_on(client)
  local stream = { last = 0 }
  client:stream("GET", "/ticks", nil, function(item, message)
    if not item then
      stream.over = true
      if item == false then problem("the stream ended: %s", message) end
      return
    end
    if item.n ~= stream.last + 1 then problem("the stream's item %d after %d", item.n, stream.last) end
    if stream.generation and stream.generation ~= item.generation then problem("a stream went to generation %d", item.generation) end
    stream.last, stream.generation = item.n, item.generation
    check_whole(item)
  end)
  return stream
end

local Load = {}
Load.__index = Load

local function begin_load(server)
  problems = {}
  seen.reset()
  local load = setmetatable({ clients = {}, flows = {}, streams = {} }, Load)
  for i = 1, CONNECTIONS do load.clients[i] = assert(pair.dial(server)) end
  for i = 1, 2 do load.streams[i] = stream_on(load.clients[i]) end
  load:go()
  return load
end

function Load:go()
  for i, client in ipairs(self.clients) do self.flows[i] = flow_on(client) end
end

-- No more requests; those under way are answered.
function Load:pause()
  for _, flow in ipairs(self.flows) do flow.running = false end
  pair.wait_for(function()
    for _, flow in ipairs(self.flows) do
      if flow.in_flight > 0 then return false end
    end
    return true
  end, function() return "requests under way were not answered\n" .. table.concat(problems, "\n") end)
  for _, flow in ipairs(self.flows) do assert(flow.sent > IN_FLIGHT) end
end

function Load:finish()
  self:pause()
  for _, client in ipairs(self.clients) do assert.equal(200, client:store("/over").code) end
  for _, stream in ipairs(self.streams) do
    pair.wait_for(function() return stream.over end, function() return "a stream has no end" end)
    assert.is_true(stream.last > 10, "the streams had few items")
  end
end

-- What the process that the first connection leads to holds.
function Load:holdings()
  local client = self.clients[1]
  waiting.settled(function() return waiting.holdings(client).bytes end)
  return waiting.holdings(client)
end

-- The reloads -------------------------------------------------------------------------------------------------------------------------

-- One reload to a number, through to its end: it serves, or the log says why not.
local function reload(server, load, way, number, flaw)
  if flaw then seen.flawed[number] = true end
  way(numbered.files(number, flaw), server, load)
  if flaw then return changing.logged(server, numbered.flaws[flaw]:format(number)) end
  pair.wait_for(function() return seen.newest == number or #problems > 0 end, function()
    return server:describe(("number %d does not serve but %d"):format(number, seen.newest))
  end)
end

-- Every third one fails, each time in another way.
local function reload_all(server, load, ways, flaws, numbers)
  for number = numbers.from, numbers.to do
    local flaw = number % 3 == 0 and flaws[number // 3 % #flaws + 1] or nil
    reload(server, load, ways[number // 2 % #ways + 1], number, flaw)
    assert_no_problem()
  end
end

local function check_flat(before, after)
  assert.equal(before.apps, after.apps, "generations that are alive")
  assert.is_true(after.bytes - before.bytes < 64 * 1024, ("Lua's memory grew by %d bytes"):format(after.bytes - before.bytes))
  if not (waiting.is_measured and waiting.full) then return end
  local grown = after.rss_bytes - before.rss_bytes
  assert.is_true(grown < 4 * waiting.MEBIBYTE, ("the server's memory grew by %.0f KB"):format(grown / 1024))
end

-- The first few make what is made once.
local function run(server, ways, flaws, count)
  local load, warm = begin_load(server), 4 * #flaws + 1
  reload_all(server, load, ways, flaws, { from = 2, to = warm })
  load:pause()
  local before = load:holdings()
  load:go()
  reload_all(server, load, ways, flaws, { from = warm + 1, to = warm + count })
  load:pause()
  check_flat(before, load:holdings())
  load:finish()
  assert_no_problem()
end

-- The ways, of a folder.
local function to(folder)
  local way = {}
  for _, name in ipairs { "rename_into_place", "write_in_place", "checkout" } do
    way[name] = function(files) numbered[name](folder, files) end
  end

  function way.hang_up(files, server)
    numbered.rename_into_place(folder, files)
    assert.equal(0, uv.kill(server.pid, "sighup"))
  end

  function way.ask(files, _, load)
    numbered.rename_into_place(folder, files)
    assert(load.clients[2]:store "/reload")
  end

  return way
end

describe("reloads under load, noticed by nobody:", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("1,000, on changes: files written in place, renamed into place, checked out by git", function()
    local folder = numbered.folder "watched"
    local server, way = changing.program({ load_limit = LOAD_LIMIT }, folder), to(folder)
    run(server, { way.rename_into_place, way.write_in_place, way.checkout }, { "syntax", "endless", "runtime", "duplicate" },
      waiting.scaled(1000))
  end)

  it("1,000, at SIGHUP and by app:reload, of korv serve --no-watch", function()
    local folder = numbered.folder "unwatched"
    local server, way = changing.command { "--no-watch", "--log-level", "error", folder }, to(folder)
    run(server, { way.hang_up, way.ask }, { "syntax", "runtime", "duplicate" }, waiting.scaled(1000))
  end)

  it("300, of two workers, in all these ways", function()
    local folder = numbered.folder "worked"
    local server, way = changing.command { "--workers", "2", "--log-level", "error", folder }, to(folder)
    run(server, { way.checkout, way.ask, way.rename_into_place, way.write_in_place }, { "syntax", "runtime", "duplicate" },
      waiting.scaled(300))
  end)
end)

describe("a module that only an endpoint requires", function()
  setup(pair.begin)
  teardown(pair.finish)

  it("is loaded anew when it changes, and so is one that did not load", function()
    local script = support.write("late_script.lua", [[return function(app)
      app:get("/late", function() return 200, { require "late", app.generation } end)
    end]])
    support.write("late.lua", "return 1")
    local server = changing.command { "--log-level", "error", script }
    local client = assert(pair.dial(server))
    local function answers(...)
      local wanted, response = { ... }, nil
      pair.wait_for(function()
        response = client:get "/late"
        return response.body[1] == wanted[1] and response.body[2] == wanted[2]
      end, function() return korv.json.encode(response) end)
    end
    answers(1, 1)
    support.write("late.lua", "return 2")
    answers(2, 2)
    support.write("late.lua", "return 2 +")
    pair.wait_for(function() return client:get("/late").code == 500 end)
    support.write("late.lua", "return 3")
    answers(3, 4)
  end)
end)

describe("a reload that fails", function()
  setup(pair.begin)
  teardown(pair.finish)

  for title, more in pairs { ["one process"] = {}, ["two workers"] = { "--workers", "2" } } do
    it("is made good by a change of what only it had required, with " .. title, function()
      local folder = numbered.folder("mended" .. #more)
      local server = changing.command { "--log-level", "error", folder, table.unpack(more) }
      local client = assert(pair.dial(server))
      local files = { ["parts/fresh.lua"] = "broken", ["b.lua"] = 'require "parts.fresh"\n' .. numbered.files(1)["b.lua"] }
      numbered.write_in_place(folder, files)
      changing.logged(server, "parts/fresh%.lua:1: ")
      numbered.rename_into_place(folder, { ["parts/fresh.lua"] = "return 1" })
      pair.wait_for(function() return client:get("/b").body.generation == 2 end, function() return server:describe "was not reloaded" end)
    end)
  end
end)
