local cjson = require "cjson"
local json = require("korv.core").json
local log = require "korv.log"
local support = require "spec.support"

local lines, level

-- The message of the only line that fn logs.
local function message_of(...)
  lines = {}
  log.info(...)
  assert.equal(1, #lines)
  return (lines[1]:match("^%S+ info (.*)$"))
end

describe("log", function()
  before_each(function()
    lines = {}
    log.sink(function(line) lines[#lines + 1] = line end)
    level = log.level()
    log.format "text"
  end)

  after_each(function()
    log.sink(nil)
    log.level(level)
    log.format "auto"
    log.context(nil)
    log.worker(nil)
  end)

  it("formats the message", function() assert.equal("3 of five", message_of("%d of %s", 3, "five")) end)

  it("takes a message without arguments as it stands", function() assert.equal("100%d", message_of("100%d")) end)

  it("writes info and above until told otherwise", function()
    for _, name in ipairs { "debug", "info", "warn", "error" } do log[name](name) end
    assert.equal(3, #lines)
    assert.matches(" info info$", lines[1])
    assert.matches(" error error$", lines[3])
  end)

  it("has a threshold", function()
    for threshold, count in pairs { debug = 4, info = 3, warn = 2, error = 1 } do
      lines = {}
      log.level(threshold)
      for _, name in ipairs { "debug", "info", "warn", "error" } do log[name]("x") end
      assert.equal(count, #lines)
    end
  end)

  it("says which threshold held", function()
    assert.equal("info", log.level("error"))
    assert.equal("error", log.level())
    local ok, message = pcall(function() log.level("loud") end)
    assert.is_false(ok)
    assert.matches("log_spec.lua:%d+: unknown log level loud: it is debug, info, warn or error$", message)
    assert.equal("error", log.level())
  end)

  it("formats nothing that it does not write", function()
    local asked = false
    log.debug("%s", setmetatable({}, { __tostring = function() asked = true return "" end }))
    assert.is_false(asked)
  end)

  it("lets no message begin a line or steer a terminal", function()
    assert.equal("a\\n2026-11-22T11:13:00Z error forged", message_of("%s", "a\n2026-11-22T11:13:00Z error forged"))
    assert.equal("\\r\\t\\x00\\x1b[31m\\x7f", message_of("\r\t\0\27[31m\127"))
    assert.equal("\\xc2\\x85 \\xc2\\x9b31m", message_of("\u{85} \u{9B}31m"))
    assert.equal("\\xe2\\x80\\xa8 \\xe2\\x80\\xae \\xe2\\x81\\xa6", message_of("\u{2028} \u{202E} \u{2066}"))
  end)

  it("keeps other text, and escapes what is no UTF-8", function()
    assert.equal("Zoë, € – 😀 \u{A0}\u{2027}\u{202F}", message_of("Zoë, € – 😀 \u{A0}\u{2027}\u{202F}"))
    assert.equal("a \\x9b \\xff b", message_of("a \x9B \xFF b"))
  end)

  it("cuts what is too long, between characters", function()
    assert.equal(("x"):rep(16384), message_of(("x"):rep(16384)))
    assert.equal("x" .. ("é"):rep(8191) .. "… (20001 bytes)", message_of("x" .. ("é"):rep(10000)))
    assert.equal("… (20000 bytes)", message_of(("\x80"):rep(20000)))
  end)

  it("tells whether a level is written", function()
    log.level "warn"
    assert.same({ false, false, true, true }, { log.enabled "debug", log.enabled "info", log.enabled "warn", log.enabled "error" })
    log.level "debug"
    assert.is_true(log.enabled "debug")
    local ok, message = pcall(function() log.enabled() end)
    assert.is_false(ok)
    assert.matches("log_spec.lua:%d+: unknown log level nil: it is ", message)
  end)

  it("says which format was set", function()
    assert.equal("text", log.format "json")
    assert.equal("json", log.format())
    local ok, message = pcall(function() log.format "xml" end)
    assert.is_false(ok)
    assert.matches("log_spec.lua:%d+: unknown log format xml: it is text, json or auto$", message)
    assert.equal("json", log.format())
  end)

  describe("with a request and a worker", function()
    local ids = {
      ["17"] = 17, ['"seventeen"'] = "seventeen",
      ['"\u{202E}\u{2028}\127"'] = '"\u{202E}\u{2028}\127"',
      ['"' .. ("x"):rep(100) .. '"'] = '"' .. ("x"):rep(63) .. "… (102 bytes)",
    }

    it("says so in text", function()
      log.context(function() return "17" end)
      assert.equal("[17] late", message_of("late"))
      log.worker(2)
      assert.equal("w2 [17] late", message_of("late"))
      log.context(function() end)
      assert.equal("w2 late", message_of("late"))
      log.context(function() return '"\n\u{202E}' .. ("x"):rep(100) end)
      assert.equal("w2 [\"\\n\\xe2\\x80\\xae" .. ("x"):rep(59) .. "… (105 bytes)] late", message_of("late"))
    end)

    it("refuses what is neither", function()
      for what, wanted in pairs { context = "a function", worker = "an integer" } do
        local ok, message = pcall(function() log[what] "2" end)
        assert.is_false(ok)
        assert.matches(("log_spec.lua:%%d+: log.%s: give it %s, or nil for none$"):format(what, wanted), message)
      end
    end)

    it("says so in JSON", function()
      log.format "json"
      for id, shown in pairs(ids) do
        log.context(function() return id end)
        log.worker(2)
        lines = {}
        log.error("late")
        local told = cjson.decode(lines[1])
        told.time = nil
        assert.same({ level = "error", message = "late", request = shown, worker = 2 }, told)
        assert.is_nil(lines[1]:find "[^ -~…]", lines[1])
      end
      log.context(nil)
      log.worker(nil)
      lines = {}
      log.error("late")
      assert.matches('^{"time":"[^"]+","level":"error","message":"late"}$', lines[1])
    end)
  end)

  describe("in JSON", function()
    -- What a program in another language makes of the lines: a list of [time, level, message, the line's own text]
    local function python_of(list)
      local path = support.write("lines", table.concat(list, "\n") .. "\n")
      local done = support.run { support.python, "-c", [[
import json, sys
lines = open(sys.argv[1], encoding="utf-8", newline="\n").read().splitlines()
print(json.dumps([json.loads(line) for line in lines]))]], path }
      assert(done.code == 0, done.stderr)
      return json.decode(done.stdout)
    end

    teardown(support.finish)

    it("escapes what is hostile, and keeps the rest", function()
      log.format "json"
      local messages = {
        ['plain "quoted" \\ back'] = true, ["Zoë, € – 😀"] = true, [""] = true,
        ["a\n{\"time\":\"2026\"}"] = true, ["\0\1\27[31m\127\r\t"] = true, ["\u{85}\u{9B}31m"] = true,
        ["\u{2028}\u{2029}\u{202E}\u{2066}"] = true,
        ["a \x9B \xFF b\n"] = "a \\x9b \\xff b\n", ["\xED\xA0\x80"] = "\\xed\\xa0\\x80", ["\xF4\x90\x80\x80"] = "\\xf4\\x90\\x80\\x80",
        [("\x80"):rep(20000)] = "… (20000 bytes)",
        ["x" .. ("é"):rep(10000)] = "x" .. ("é"):rep(8191) .. "… (20001 bytes)",
      }
      local order = {}
      for message in pairs(messages) do
        order[#order + 1] = message
        log.warn("%s", message)
      end
      local read = python_of(lines)
      assert.equal(#order, #read)
      for i, message in ipairs(order) do
        local wanted = messages[message] == true and message or messages[message]
        assert.equal(wanted, read[i].message)
        assert.equal(wanted, cjson.decode(lines[i]).message)
        assert.equal("warn", read[i].level)
        assert.is_nil(lines[i]:find "%c")
        assert.is_nil(lines[i]:find "\xC2[\x80-\x9F]" or lines[i]:find "\xE2\x80[\xA8-\xAE]" or lines[i]:find "\xE2\x81[\xA6-\xA9]")
      end
    end)

    it("is JSON whatever bytes come, in messages, ids, peers and resources", function()
      log.format "json"
      math.randomseed(20261122)
      local function noise()
        local bytes = {}
        for i = 1, math.random(0, 60) do bytes[i] = string.char(math.random(0, 255)) end
        return table.concat(bytes)
      end
      local id
      log.context(function() return id end)
      for _ = 1, 1000 do
        id = json.encode((noise():gsub("[\x80-\xFF]", "é")))
        log.warn("%s", noise())
        log.access({ name = noise(), fingerprint = noise(), address = noise() }, noise(), noise(), 200, 1, 1, 1)
      end
      assert.equal(2000, #python_of(lines))
      for _, line in ipairs(lines) do cjson.decode(line) end
    end)
  end)

  describe("of access", function()
    local ann = { name = "ann", fingerprint = "SHA256:abc", address = "127.0.0.1", login = "root" }

    local function access(...)
      lines = {}
      log.access(...)
      return lines[1] and lines[1]:match "^%S+Z (.*)$" or lines[1]
    end

    it("is a line of text", function()
      assert.equal("info GET /users/42 200 1.3 ms 120 B ann SHA256:abc 127.0.0.1 g3", access(ann, "GET", "/users/42", 200, 1.34, 120, 3))
      assert.equal("info GET /users/42 200 1234.6 ms 1234567 B ann SHA256:abc 127.0.0.1 g4",
        access(ann, "GET", "/users/42", 200, 1234.56, 1234567, 4))
      log.worker(2)
      assert.equal("info w2 STORE / 404 0.0 ms 0 B ann SHA256:abc 127.0.0.1 g4", access(ann, "STORE", "/", 404, 0, 0, 4))
    end)

    it("is an object of JSON", function()
      log.format "json"
      local line = access(ann, "GET", '/users/"42"', 200, 1234.5678, 120, 3)
      local told = cjson.decode(line)
      assert.matches("^%d+%-%d+%-%d+T%d+:%d+:%d+%.%d%d%dZ$", told.time)
      told.time = nil
      local wanted = { level = "info", peer = "ann", key = "SHA256:abc", address = "127.0.0.1", verb = "GET", resource = '/users/"42"',
                       code = 200, ms = 1234.568, bytes = 120, generation = 3 }
      assert.same(wanted, told)
      log.worker(2)
      told = cjson.decode(access(ann, "GET", '/users/"42"', 200, 1234.5678, 120, 3))
      told.time, wanted.worker = nil, 2
      assert.same(wanted, told)
    end)

    it("does without what is not known", function()
      assert.equal("info - - 400 0.0 ms 7 B - - -", access(nil, nil, nil, 400, 0, 7))
      assert.equal("info - - 400 0.0 ms 7 B - SHA256:abc -", access({ name = "", fingerprint = "SHA256:abc" }, {}, 5, 400, 0, 7))
      log.format "json"
      local told = cjson.decode(access({ address = "::1" }, nil, nil, 400, 0, 7))
      told.time = nil
      assert.same({ level = "info", address = "::1", verb = "", resource = "", code = 400, ms = 0, bytes = 7 }, told)
    end)

    it("lets no resource pass for more than a word", function()
      local line = access(ann, "GE T", "/a 200\n\u{202E}\x80é", 404, 0, 0, 1)
      assert.equal("info GE\\x20T /a\\x20200\\n\\xe2\\x80\\xae\\x80\\xc3\\xa9 404 0.0 ms 0 B ann SHA256:abc 127.0.0.1 g1", line)
      assert.equal("info GET /é 404 0.0 ms 0 B ann SHA256:abc 127.0.0.1 g1", access(ann, "GET", "/é", 404, 0, 0, 1))
    end)

    it("cuts a long resource", function()
      local long = ("/x"):rep(10000)
      assert.matches(" /[/x]+…\\x20%(20000\\x20bytes%) 200 ", access(ann, "GET", long, 200, 0, 0, 1))
      log.format "json"
      assert.equal(long:sub(1, 16384) .. "… (20000 bytes)", cjson.decode(access(ann, "GET", long, 200, 0, 0, 1)).resource)
    end)

    it("follows a change of the settings", function()
      assert.matches("127.0.0.1 g3$", access(ann, "GET", "/", 200, 0, 0, 3))
      log.format "json"
      assert.equal("ann", cjson.decode(access(ann, "GET", "/", 200, 0, 0, 3)).peer)
      log.format "text"
      log.worker(1)
      assert.matches("^info w1 GET / ", access(ann, "GET", "/", 200, 0, 0, 3))
    end)

    it("is of level info", function()
      log.level "warn"
      assert.is_nil(access(ann, "GET", "/", 200, 0, 0, 1))
    end)

    it("holds no peer back from the collector", function()
      local weak = setmetatable({ {} }, { __mode = "v" })
      access(weak[1], "GET", "/", 200, 0, 0, 1)
      collectgarbage()
      collectgarbage()
      assert.is_nil(weak[1])
    end)
  end)

  -- What a program of its own, in another time zone, writes to stderr.
  local function stderr_of(script)
    return support.run({ "lua5.4", "-e", 'local log = require "korv.log" log.format "text" ' .. script },
      { env = { TZ = "KORV-5:30", LUA_PATH = package.path, LUA_CPATH = package.cpath } }).stderr
  end

  teardown(support.finish)

  it("writes to stderr, each message with a newline", function()
    assert.matches("^%S+ warn a\\nb\n%S+ error c\n$", stderr_of [[log.warn("a\nb") log.debug("no") log.error("c")]])
  end)

  it("writes to stderr again without a sink", function()
    assert.matches("^%S+ warn seen\n$", stderr_of [[log.sink(print) log.warn("unseen") log.sink(nil) log.warn("seen")]])
  end)

  it("begins with the time, in UTC", function()
    local line = stderr_of [[log.warn("x")]]
    local year, month, day, hour, min, sec = line:match("^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d)%.%d%d%dZ warn x\n$")
    assert.truthy(year, line)
    local logged = os.time { year = year, month = month, day = day, hour = hour, min = min, sec = sec }
    assert.is_true(math.abs(os.time(os.date("!*t")) - logged) < 60)
  end)
end)
