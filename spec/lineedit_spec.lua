--- The line editor: bytes in, and what a terminal makes of the bytes that come out. The terminal here knows no more than the editor uses.

local keystrokes = require "korv.keystrokes"
local lineedit = require "korv.lineedit"
local support = require "spec.support"
local width = require "korv.width"

local PROMPT = "> "
local KEY = { up = "\27[A", down = "\27[B", right = "\27[C", left = "\27[D", home = "\27[H", ["end"] = "\27[F", delete = "\27[3~" }

-- A terminal ----------------------------------------------------------------------------------------------------------------------------

local Terminal = {}
Terminal.__index = Terminal

local function new_terminal(columns) return setmetatable({ columns = columns, rows = { {} }, row = 1, column = 1, bells = 0 }, Terminal) end

function Terminal:put(character)
  local row, wide = self.rows[self.row], width(utf8.codepoint(character))
  if wide == 0 then
    local at = self.column - 1
    while row[at] == "" do at = at - 1 end
    row[at] = row[at] .. character
    return
  end
  if self.column + wide - 1 > self.columns and not self.may_wrap then error("it wrote past the window's edge: " .. self:text()) end
  row[self.column], row[self.column + 1] = character, wide == 2 and "" or row[self.column + 1]
  self.column = self.column + wide
end

local SEQUENCES = {
  ["^\27%[K"] = function(self)
    local row = self.rows[self.row]
    for i = self.column, self.columns * 2 do row[i] = nil end
  end,
  ["^\27%[(%d+)C"] = function(self, n) self.column = self.column + n end,
  ["^\27%[H\27%[2J"] = function(self) self.rows, self.row, self.column = { {} }, 1, 1 end,
  ["^\r"] = function(self) self.column = 1 end,
  ["^\n"] = function(self)
    self.row = self.row + 1
    self.rows[self.row] = self.rows[self.row] or {}
  end,
  ["^\a"] = function(self) self.bells = self.bells + 1 end,
}

local function sequence(self, bytes, at)
  if bytes:byte(at) >= 32 then return nil end
  for pattern, action in pairs(SEQUENCES) do
    local _, last, argument = bytes:find(pattern, at)
    if last then
      action(self, tonumber(argument))
      return last + 1
    end
  end
end

function Terminal:write(bytes)
  local at = 1
  while at <= #bytes do
    local behind = sequence(self, bytes, at)
    if not behind then
      local character = bytes:match("^" .. utf8.charpattern, at)
      assert(utf8.len(character) == 1 and not character:find "%c", ("it wrote %q"):format(bytes:sub(at, at + 8)))
      self:put(character)
      behind = at + #character
    end
    at = behind
  end
end

-- What a row shows.
function Terminal:text(number)
  local row, cells = self.rows[number or self.row], {}
  for i = 1, self.columns * 2 do cells[i] = row[i] or " " end
  return (table.concat(cells):gsub(" +$", ""))
end

-- An editor at a terminal ---------------------------------------------------------------------------------------------------------------

local editor, terminal

local function begin(options)
  options = options or {}
  editor = lineedit.new { columns = options.columns or 40, dumb = options.dumb, most = options.most or 1000 }
  terminal = new_terminal(options.columns or 40)
  terminal:write(editor:begin(PROMPT))
end

-- Types bytes; the events that came of them.
local function type_in(bytes)
  local events = {}
  while true do
    local out, rest, event, text = editor:feed(bytes)
    terminal.may_wrap = event == "line" -- which is shown whole
    terminal:write(out)
    if event then events[#events + 1] = event == "line" and { text } or event end
    if event and event ~= "complete" then
      if text and event == "line" then editor:remember(text) end
      terminal:write(editor:begin(PROMPT))
    end
    if rest == "" then return events end
    bytes = rest
  end
end

-- The row as it is, with | for the cursor.
local function shown()
  local row, cells = terminal.rows[terminal.row], {}
  for i = 1, terminal.columns * 2 do
    if i == terminal.column then cells[#cells + 1] = "|" end
    cells[#cells + 1] = row[i] or " "
  end
  return (table.concat(cells):gsub("^> ", ""):gsub(" +$", ""))
end

local function assert_shows(expected, ...)
  type_in(table.concat { ... })
  assert.equal(expected, shown())
end

describe("the line editor", function()
  before_each(function() begin() end)

  it("shows what is typed, and hands over the line", function()
    assert_shows("GET /hello|", "GET /hello")
    assert.same({ { "GET /hello" } }, type_in "\r")
    assert.equal("> GET /hello", terminal:text(1))
    assert.equal("|", shown())
  end)

  it("takes CR, LF and CR LF as one line's end", function()
    assert.same({ { "a" }, { "b" }, { "c" }, { "" }, { "d" } }, type_in "a\rb\nc\r\n\r\nd\r")
    begin()
    assert.same({ { "a" } }, type_in "a\r")
    assert.same({ { "b" } }, type_in "\nb\n")
  end)

  it("moves by characters, words and to the ends", function()
    type_in "one two-three"
    for _, move in ipairs {
      { KEY.left, "one two-thre|e" }, { "\2", "one two-thr|ee" }, { "\1", "|one two-three" }, { KEY.right, "o|ne two-three" },
      { "\6", "on|e two-three" }, { "\27f", "one| two-three" }, { "\27[1;5C", "one two|-three" }, { "\27[1;3C", "one two-three|" },
      { "\27b", "one two-|three" }, { "\27[1;5D", "one |two-three" }, { "\5", "one two-three|" }, { KEY.home, "|one two-three" },
      { KEY["end"], "one two-three|" }, { "\27OH", "|one two-three" }, { "\27OF", "one two-three|" }, { "\27[1~", "|one two-three" },
      { "\27[4~", "one two-three|" }, { "\27OD", "one two-thre|e" }, { "\27OC", "one two-three|" },
    } do assert_shows(move[2], move[1]) end
    assert.equal(0, terminal.bells)
  end)

  it("inserts and removes where the cursor is", function()
    for _, edit in ipairs {
      { "abcd", "abcd|" }, { "\2\2X", "abX|cd" }, { "\8", "ab|cd" }, { "\127", "a|cd" }, { "\4", "a|d" }, { KEY.delete, "a|" },
      { "\21", "|" }, { "one two  ", "one two  |" }, { "\23", "one |" }, { "\25", "one two  |" }, { "\1\11", "|" },
      { "\25\25", "one two  one two  |" }, { "\21a/b-c d", "a/b-c d|" },
      { "\27\127\27\8", "a/b-|" }, { "\1\27d", "|/b-" }, { "\27d", "|-" }, { "\5\25", "-/b|" },
      { "\20", "-b/|" }, { "\2\2\20", "b-|/" },
    } do assert_shows(edit[2], edit[1]) end
  end)

  it("rings where there is nothing to do", function()
    type_in("\8\23\21\11\20\27d" .. KEY.up .. KEY.down)
    assert.equal(1, terminal.bells) -- once for all that came together
    type_in "\8"
    assert.equal(2, terminal.bells)
    assert.equal("|", shown())
  end)

  it("knows characters of no, one and two columns", function()
    assert_shows("日本|", "日本")
    assert.equal(3 + 4, terminal.column)
    assert_shows("日|本", KEY.left)
    assert_shows("日a|本", "a")
    assert_shows("日|本", "\8")
    assert_shows("|本", "\8")
    assert_shows("本e\u{301}|", "\5e\u{301}")
    assert.equal(3 + 3, terminal.column)
    assert_shows("本|e\u{301}", KEY.left)
    assert_shows("本e\u{301}|", KEY.right)
    assert_shows("本|", "\8")
    assert_shows("é|本", "\1é")
  end)

  it("takes bytes in any pieces", function()
    local bytes = "日e\u{301}" .. KEY.left .. "\27[1;5Dx\27[200~p\rq\27[201~" .. KEY["end"] .. "y"
    type_in(bytes)
    local at_once = shown()
    assert.equal("xp↵q日e\u{301}y|", at_once)
    for size = 1, 5 do
      begin()
      for from = 1, #bytes, size do type_in(bytes:sub(from, from + size - 1)) end
      assert.equal(at_once, shown())
    end
  end)

  it("leaves out what is no UTF-8 and what it does not know", function()
    assert_shows("ab|", "a\xff\xc3\xed\xa0\x80b")
    assert.equal(1, terminal.bells)
    assert_shows("abc|", "\0\14\15\17\19\22\24\26\27[Z\27[15~\27[?1;2c\27x\27\27[99;99Hc\28\29\30\31")
    assert_shows("abc|", "\27[" .. ("1;"):rep(40))
    assert_shows("abcd|", "d")
  end)

  it("shows nothing that steers the terminal, and keeps it", function()
    assert_shows("a\u{FFFD}b\u{FFFD}c|", "a\u{85}b\u{202e}c")
    assert.same({ { "a\u{85}b\u{202e}c" } }, type_in "\r")
  end)

  it("reports Ctrl-C, and Ctrl-D on an empty line", function()
    assert.same({ "interrupt" }, type_in "abc\2\2\3")
    assert.equal("> abc^C", terminal:text(1))
    assert.same({ "leave" }, type_in "\4")
    assert.same({}, type_in "x\2\4")
    assert.same({ "leave" }, type_in "\4")
  end)

  it("clears the screen", function()
    type_in "one\rtwo\2\12"
    assert.same({ 1, "tw|o" }, { terminal.row, shown() })
  end)
end)

describe("a line longer than the window", function()
  before_each(function() begin { columns = 20 } end)

  it("scrolls, never writes past the edge, and is shown whole once it is ended", function()
    local text = ("abcdefghij"):rep(5)
    for character in text:gmatch "." do type_in(character) end
    assert.matches("^<[a-j]+|$", shown())
    assert_shows("|abcdefghijabcde>", "\1")
    type_in(KEY.right:rep(20))
    assert.matches("^<[a-j]+|[a-j]+>$", shown())
    assert.same({ { text } }, type_in "\r")
    assert.equal("> " .. text:sub(1, 38), terminal:text(1))
  end)

  it("scrolls over wide characters", function()
    for _ = 1, 20 do type_in "日" end
    assert.matches("^<[日]+|$", shown())
    type_in(KEY.left:rep(13))
    assert.equal("<日|日日日日日日>", shown())
    type_in "\1"
    assert.equal("|日日日日日日日>", shown())
  end)

  it("fits a window of any width after a resize", function()
    type_in(("abcdefghij"):rep(5) .. "\27b\6\6\6")
    for _, columns in ipairs { 80, 30, 10, 5, 4, 200, 20 } do
      terminal = new_terminal(columns)
      terminal:write(editor:resize(columns))
      assert.equal("abc", editor.text:sub(1, 3))
      type_in "\2"
    end
    terminal = new_terminal(80)
    terminal:write(editor:resize(80))
    assert_shows("|" .. ("abcdefghij"):rep(5), "\1")
  end)

  it("takes a bounded time for what is typed at once, whatever it is", function()
    for _, case in ipairs { { ("a"):rep(65000), "\23\25" }, { "a" .. ("\u{301}"):rep(32000), "\2\6" }, { ("a "):rep(32500), "\27b" },
      { ("a"):rep(60000), "\2x" }, { ("日"):rep(20000), "\20\2\2" } } do
      begin { most = 65536, columns = 80 }
      editor:feed(case[1])
      local clock = os.clock()
      editor:feed(case[2]:rep(100000))
      assert.is_true(os.clock() - clock < 0.5, ("%g s for %q"):format(os.clock() - clock, case[2]))
    end
  end)

  it("is refused past its limit, also where something was removed again", function()
    begin { most = 10 }
    assert.same({ { "0123456789" } }, type_in "0123456789\r")
    assert.same({ "too_long" }, type_in "0123456789x\r")
    type_in "01234"
    type_in "56789012"
    assert_shows("012a|", "\8\8a")
    assert.same({ "too_long" }, type_in "\r")
    assert.same({ { "b" } }, type_in "01234567890123456789\21b\r")
  end)
end)

describe("the display", function()
  -- Keys in a chance order that is the same each time.
  local function random_keys(seed)
    local pieces = { "a", "b ", "/", "日", "e\u{301}", "\u{1F600}", "x", "yz", "\1", "\2", "\4", "\5", "\6", "\8", "\11", "\20", "\21",
      "\23", "\25", "\16", "\14", "\18", "\7", "\9", "\27b", "\27f", "\27d", "\27\127", "\27[200~p q\nr\27[201~", "\r", KEY.left, KEY.left,
      KEY.home, "some more text" }
    local state = seed
    return function()
      state = (state * 1103515245 + 12345) % 2147483648
      return pieces[state // 65536 % #pieces + 1]
    end
  end

  it("is what it would be if it were drawn anew, whatever was typed", function()
    for seed = 1, 60 do
      local columns, key = 8 + seed, random_keys(seed)
      begin { columns = columns }
      local here, there = editor, terminal
      begin { columns = columns }
      for _ = 1, 200 do
        local bytes = key()
        local other, other_terminal = editor, terminal
        editor, terminal = here, there
        type_in(bytes)
        editor, terminal = other, other_terminal
        type_in(bytes)
        editor.stale, editor.clear = true, true
        terminal:write((editor:feed ""))
        assert.same({ terminal:text(), terminal.column }, { there:text(), there.column }, ("seed %d, %q"):format(seed, bytes))
      end
    end
  end)
end)

describe("history", function()
  before_each(function()
    begin()
    type_in "one\rtwo\rtwo\r\rthree\r"
  end)

  it("is walked through, without doubles, and ends in the line that was being written", function()
    type_in "fou"
    for _, step in ipairs { { KEY.up, "three|" }, { "\16", "two|" }, { KEY.up, "one|" }, { KEY.up, "one|" }, { KEY.down, "two|" },
      { "\14", "three|" }, { KEY.down, "fou|" }, { KEY.down, "fou|" }, { "r", "four|" } } do assert_shows(step[2], step[1]) end
    assert.equal(2, terminal.bells)
  end)

  it("keeps what it was though a line of it is changed and sent", function()
    assert.same({ { "twos" } }, type_in(KEY.up .. KEY.up .. "s\r"))
    assert_shows("twos|", KEY.up)
    assert_shows("three|", KEY.up)
    assert_shows("two|", KEY.up)
  end)

  it("is searched back", function()
    type_in "draft\18t"
    assert.equal("> (history: t) three", "> " .. terminal:text())
    type_in "w"
    assert.equal("(history: tw) two", terminal:text())
    type_in "\18"
    assert.equal(1, terminal.bells)
    type_in "\127o\18"
    assert.same({ { "two!" } }, type_in "\5!\r")
    type_in "draft\18one"
    assert_shows("draft|", "\7")
    assert.same({ { "one" } }, type_in "\18one\r")
  end)

  it("is searched once at a time, as that may take long", function()
    local line = ("a"):rep(100)
    type_in(line .. "x\r\18" .. line .. "\7")
    for _, case in ipairs { { "\18" .. line .. "\18\18\18", "\18\18\18" }, { "\18ab\127c\127d", "\127c\127d" } } do
      local _, rest = editor:feed(case[1])
      assert.equal(case[2], rest)
      type_in "\7"
    end
  end)

  it("is bounded, in lines and in bytes", function()
    for i = 1, 1000 do editor:remember("line " .. i) end
    assert.equal(200, #editor.history)
    begin { most = 100000 }
    for i = 1, 10 do editor:remember(("x"):rep(50000) .. i) end
    assert.equal(5, #editor.history)
    for _ = 1, 10 do type_in(KEY.up) end
    assert.equal("6", editor.text:sub(-1))
  end)
end)

describe("a paste in brackets", function()
  before_each(function() begin() end)

  it("is text, lines' ends and all", function()
    assert_shows('{↵ "a": 1↵}|', "\27[200~{\r\n\t\"a\": 1\r}\27[201~")
    assert.same({ { '{\n "a": 1\n}' } }, type_in "\r")
    assert.same({ "> {", ' "a": 1', "}" }, { terminal:text(1), terminal:text(2), terminal:text(3) })
  end)

  it("has no keys in it but Ctrl-C", function()
    assert_shows("a[Abc|", "\27[200~a\27[A\1b\4\127c\27[201~")
    assert.same({ "interrupt", { "x" } }, type_in "\27[200~abc\3x\r")
  end)
end)

describe("completion", function()
  before_each(function() begin { columns = 30 } end)

  local function offer(...)
    local list = {}
    for i, text in ipairs { ... } do list[i] = { text = text, label = text } end
    terminal:write(editor:offer(5, list))
  end

  it("asks for candidates, of what is before the cursor", function()
    local _, rest, event, text = editor:feed "GET /us\2\2\9\5"
    assert.same({ "\5", "complete", "GET /" }, { rest, event, text })
  end)

  it("goes as far as all agree", function()
    type_in "GET /u"
    offer("/users", "/users/:name", "/usage")
    assert.equal("GET /us|", shown())
    type_in "e"
    offer "/users "
    assert.equal("GET /users |", shown())
    offer()
    assert.equal(1, terminal.bells)
  end)

  it("stays in its place", function()
    type_in "GET /u {}\2\2\2"
    offer "/users"
    assert.equal("GET /users| {}", shown())
  end)

  it("lists in columns what it has no more to say of", function()
    type_in "GET /"
    offer("/a", "/bcdef", "/日本", "/d", "/e", "/f", "/g")
    assert.equal("GET /|", shown())
    assert.same({ "/a      /d      /g", "/bcdef  /e", "/日本   /f" }, { terminal:text(2), terminal:text(3), terminal:text(4) })
  end)

  it("lists a hundred at most", function()
    local many = {}
    for i = 1, 150 do many[i] = ("/%d"):format(i) end
    type_in "GET /"
    offer(table.unpack(many))
    assert.equal("… and 50 more", terminal:text(terminal.row - 1))
  end)
end)

describe("at a terminal that can do nothing", function()
  before_each(function() begin { dumb = true } end)

  it("echoes, and shows the line anew where more than its end has changed", function()
    local out = editor:feed "abc"
    assert.equal("abc", out)
    assert.equal("\r\n> ab", (editor:feed "\8"))
    assert.equal("d", (editor:feed "d"))
    assert.equal("", (editor:feed "\2\1"))
    assert.equal("e\r\n", (editor:feed "e\r"))
  end)

  it("is sent no control sequence by any key", function()
    local sent = {}
    for byte = 0, 126 do sent[#sent + 1] = editor:feed("x" .. string.char(byte)) end
    for _, key in pairs(KEY) do sent[#sent + 1] = editor:feed(key) end
    sent[#sent + 1] = editor:resize(10) .. editor:begin "> "
    sent[#sent + 1] = editor:offer(1, { { text = "a", label = "a" }, { text = "b", label = "b" } })
    assert.is_nil(table.concat(sent):find "[%z\1-\6\8\9\11\12\14-\31\127]")
  end)
end)

describe("keys", function()
  local function all(bytes)
    local keys, at, list = keystrokes.new(), 1, {}
    while at <= #bytes do
      local behind, key, text = keys:next(bytes, at)
      list[#list + 1] = key or text
      at = behind
    end
    return list
  end

  it("are told from text", function()
    assert.same({ "ab", "home", "日", "previous", "interrupt", "c" }, all "ab\1日\27[A\3c")
    assert.same({ "interrupt", "d" }, all "\27[\3d")
  end)

  it("wait for the rest of what is not whole", function()
    for _, bytes in ipairs { "\27", "\27[", "\27[1;", "\27O", "\xe6", "\xe6\x97", "\xf0\x9f\x98" } do
      assert.is_nil((keystrokes.new():next(bytes, 1)), ("%q"):format(bytes))
    end
  end)
end)

describe("columns", function()
  it("are those of Unicode", function()
    local done = support.run({ support.python, "-c", [[
import unicodedata as u
subtending = set(range(0x600, 0x606)) | set(range(0x890, 0x892)) | {0x6dd, 0x70f, 0x8e2, 0x110bd, 0x110cd, 0xad}
for c in range(0x300, 0x110000):
    ch = chr(c)
    if u.category(ch) in ('Cn', 'Co', 'Cs'): continue
    none = u.category(ch) in ('Mn', 'Me', 'Cf') and c not in subtending or 0x1160 <= c <= 0x11ff
    print(c, 0 if none else 2 if u.east_asian_width(ch) in 'WF' else 1)
]] }, { timeout = 60 })
    assert.equal(0, done.code, done.stderr)
    local count = 0
    for code, columns in done.stdout:gmatch "(%d+) (%d)" do
      count = count + 1
      code = tonumber(code)
      if width(code) ~= tonumber(columns) then error(("U+%04X: %d columns, not %s"):format(code, width(code), columns)) end
    end
    assert.is_true(count > 140000)
    support.finish()
  end)
end)
