local log = require "korv.log"

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
  end)

  after_each(function()
    log.sink(nil)
    log.level(level)
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

  -- What a program of its own, in another time zone, writes to stderr.
  local function stderr_of(script)
    local prelude = ('local log = dofile("%s") '):format(package.searchpath("korv.log", package.path))
    local pipe <close> = io.popen(("TZ=KORV-5:30 lua5.4 -e '%s' 2>&1 >/dev/null"):format(prelude .. script))
    return pipe:read("a")
  end

  it("writes to stderr, each message with a newline", function()
    assert.matches("^%S+ warn a\\nb\n%S+ error c\n$", stderr_of [[log.warn("a\nb") log.debug("no") log.error("c")]])
  end)

  it("writes to stderr again without a sink", function()
    assert.matches("^%S+ warn seen\n$", stderr_of [[log.sink(print) log.warn("unseen") log.sink(nil) log.warn("seen")]])
  end)

  it("begins with the time, in UTC", function()
    local line = stderr_of [[log.warn("x")]]
    local year, month, day, hour, min, sec = line:match("^(%d%d%d%d)-(%d%d)-(%d%d)T(%d%d):(%d%d):(%d%d)Z warn x\n$")
    assert.truthy(year, line)
    local logged = os.time { year = year, month = month, day = day, hour = hour, min = min, sec = sec }
    assert.is_true(math.abs(os.time(os.date("!*t")) - logged) < 60)
  end)
end)
